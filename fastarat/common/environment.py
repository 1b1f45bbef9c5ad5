"""What a run was made with: versions, machine, commit."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastarat.common.version import __version__

PACKAGES = ("numpy", "triton", "safetensors", "ffcv", "nvidia-dali-cuda130", "nvidia-dali-cuda120")


def environment() -> dict[str, Any]:
    """Versions, GPU and driver, processor, commit, date and command; None for what is not there."""
    on_gpu = torch.cuda.is_available()
    return {
        "fastarat": __version__,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "driver": _driver() if on_gpu else None,
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The commit of the checkout that runs, with '+' if it has changes.

    A copy without history is told by $FASTARAT_COMMIT which commit it is, of which 12 characters count, as in a
    checkout; None where nothing says so.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        told, plus, _ = os.environ.get("FASTARAT_COMMIT", "").partition("+")
        return f"{told[:12]}{plus}" if told else None
    head = _output(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"])
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return f"{head}+" if head and changed else head


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _processor() -> str | None:
    """The CPU's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


@cache
def _driver() -> str | None:
    """The GPU driver's version, asked for once: nvidia-smi takes up to seconds to start."""
    found = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return found.splitlines()[0] if found else None


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
