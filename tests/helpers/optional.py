"""What some tests need and a machine may lack: they skip there, and the run's last lines say what would bring it."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastarat.training.compiling.toolchain import compiler

ROOT = Path(__file__).parents[2]
HAS_FFCV = find_spec("ffcv") is not None
HAS_DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None

needs_ffcv = pytest.mark.skipif(not HAS_FFCV, reason="FFCV is not installed")
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="DALI is not installed")
needs_compiler = pytest.mark.skipif(compiler("cpu") is None, reason="a C++ compiler is not installed")

LOADER_NEEDS = {"ffcv": needs_ffcv, "dali": needs_dali}


def each_loader(*names: str) -> list:
    """Parameters of a test that runs for each of these loaders: one that is not installed skips."""
    return [pytest.param(name, marks=LOADER_NEEDS.get(name, ())) for name in names]


def debian_packages() -> str:
    """What FFCV is compiled with and this machine lacks, as apt-get takes it."""
    command = [ROOT / "requirements/native.sh", sys.executable]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def what_brings_them(reasons: Iterable[str], missing: str) -> list[str]:
    """A line for each optional part that tests skipped for, given why each test skipped.

    `missing`: the Debian packages that FFCV's build lacks, with a space between; nothing if it lacks none.
    """
    skipped, lines = Counter(reasons), []
    for part, brings in {
        "FFCV": f"apt-get install {missing}, as root, then make test" if missing else "make test, see .venv/ffcv.log",
        "DALI": "make test, see .venv/dali.log",
        "a C++ compiler": "apt-get install g++, as root",
        "Chromium": "apt-get install chromium, as root",
        "wandb": "make slow-tests",
        "mlflow": "make slow-tests",
        "nbclient": "make slow-tests",
    }.items():
        if number := sum(skipped[reason] for reason in skipped if reason.endswith(f"{part} is not installed")):
            lines.append(f"{part} is not installed, tests skipped: {number}. What brings it: {brings}")
    return lines


def say_what_brings_them(reporter: pytest.TerminalReporter) -> None:
    """Write those lines for the tests that this run has skipped."""
    reasons = [report.longrepr[2] for report in reporter.stats.get("skipped", [])]
    if any(reason.endswith("is not installed") for reason in reasons):
        for line in what_brings_them(reasons, debian_packages()):
            reporter.write_line(line, yellow=True)
