"""What tests of several machines share: hosts in network namespaces of this one, commands there, a run to compare."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bench.common.hosts import Host, hosts
from fastarat.common.errors import UserError
from tests.helpers.command_line import TINY, Result, assert_same, finish, newest, record, start, state_of

NET = "10.77.0"
PREFIX = f"fast-{os.environ.get('PYTEST_XDIST_WORKER', 'one')}"
"""of names of hosts: each worker of pytest has its own"""
RUN = (*TINY, "--epochs", "2", "--num-train-images", "256", "--batch", "64")
PORTS = count(29500)


@contextmanager
def two_machines() -> Iterator[list[Host]]:
    """NET.1 and NET.2; the test is skipped where that is not allowed."""
    try:
        with hosts(2, PREFIX, NET) as made:
            yield made
    except UserError as error:
        pytest.skip(str(error))


def on(machine: Host, *command: object, **options: Any) -> subprocess.Popen:
    """Start `fastarat ARGS` there."""
    return start(*command, within=machine.within, **options)


def all_ended(processes: list[subprocess.Popen]) -> list[Result]:
    return [finish(process) for process in processes]


def assert_same_state(ours: Path, theirs: Path) -> None:
    mine, other = state_of(newest(ours)), state_of(newest(theirs))
    for part in ("model", "method", "momenta"):
        assert_same(mine[part], other[part], part)


def events_of(run: Path) -> list[str]:
    """What happened to a run, by its record."""
    return [said for session in record(run)["sessions"] for said in session.get("events", [])]
