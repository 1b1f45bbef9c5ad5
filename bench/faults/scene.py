"""Two machines that train one run, each with a disk of its own, and what can be asked of them while something fails."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common.hosts import Host
from bench.common.processes import environment
from fastarat.common.errors import WorkError

TRAIN = (
    *("train", "digits-arat", "--device", "cpu", "--dtype", "fp32", "--compile", "eager", "--procs", "1", "--sync-bn"),
    *("--num-train-images", "128", "--batch", "32", "--attack.steps", "1", "--evaluation.every-epochs", "0"),
    *("--evaluation.num-images", "50", "--evaluation.steps", "1", "--checkpoint.every-s", "1", "--no-report"),
    *("--out", "run"),
)
ELASTIC = ("--nodes", "1:2", "--max-restarts", "20")
FIXED = ("--nodes", "2")
FINITE, ENDLESS = ("--epochs", "150"), ("--epochs", "100000")
LATEST_S = 3.0
"""the latest moment of a fault, in seconds after the run has begun, or has gone on after the one before"""
_AT_THE_START = "step-000000000.pt"
LONGEST_S = 600
LEFT_S = 10
"""seconds after which no process may be left"""


@dataclass(frozen=True)
class Fault:
    """Something that fails."""

    name: str
    do: Callable[["Scene"], tuple[float, str]]
    """lets it happen; returns seconds until the run goes on or has ended, and what was said"""
    outcome: str
    says: str
    """what the line has to hold"""
    bits_stay: bool = False
    """whether the run ends in the bits of an undisturbed one"""


@dataclass
class Try:
    """A fault that happened."""

    fault: Fault
    moment: float
    """seconds after the run had begun, or had gone on"""
    seconds: float | None = None
    said: str = ""
    left: int = 0
    """processes that were left on a machine that had ended"""


class Scene:
    """`machines`, of which the first hosts the store and writes the run; a `folder`; random `moments`; a `port`."""

    def __init__(self, machines: list[Host], folder: Path, moments: random.Random, port: int):
        self.machines, self.moments, self.port = machines, moments, port
        self.disks = [folder / host.name for host in machines]
        for disk in self.disks:
            disk.mkdir(parents=True)
        self.run = self.disks[0] / "run"
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.tries: list[Try] = []
        self.num_told = 0
        """events that were recorded before the fault that happens now"""

    def start(self, which: int, *flags: str, **variables: str) -> None:
        """Start the command on a machine."""
        meet = ("--rendezvous", f"{self.machines[0].address}:{self.port}")
        command = [*self.machines[which].within, sys.executable, "-m", "fastarat", *TRAIN, *meet, *flags]
        paths = os.pathsep.join(filter(None, (variables.pop("PYTHONPATH", ""), environment()["PYTHONPATH"])))
        variables = {**environment(OMP_NUM_THREADS="1", **variables), "PYTHONPATH": paths}
        with self._log(which).open("ab") as log:
            self.processes[which] = subprocess.Popen(
                command, cwd=self.disks[which], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=variables
            )

    def trains(self, *flags: str) -> None:
        """Start it on both, and come back when they train."""
        for which in range(2):
            self.start(which, *flags)
        self.wait((self.run / "config.json").exists)

    def let(self, fault: Fault) -> None:
        """Let it happen, at a random moment. Raises `WorkError` if nothing comes of it."""
        self.tries.append(Try(fault, round(self.moments.uniform(0, LATEST_S), 3)))
        time.sleep(self.tries[-1].moment)
        self.num_told = len(self._all_events())
        self.tries[-1].seconds, self.tries[-1].said = fault.do(self)

    def saves(self) -> None:
        """Wait for a checkpoint that is newer than those that are there: what comes then costs no more than is new."""
        before = self._newest()
        self.wait(lambda: self._newest() > before)

    def _newest(self) -> str:
        return max((path.name for path in (self.run / "checkpoints").glob("step-*.pt")), default=_AT_THE_START)

    def wait(self, is_so: Callable[[], Any]) -> None:
        """Wait until something is so. Raises `WorkError` if it does not come."""
        end = time.monotonic() + LONGEST_S
        while not is_so():
            if time.monotonic() > end:
                raise WorkError(f"waited {LONGEST_S} s in vain; {' | '.join(map(self.said, range(2)))}")
            time.sleep(0.05)

    def events(self) -> list[str]:
        """What the run recorded of what happened to it since this fault."""
        return self._all_events()[self.num_told :]

    def _all_events(self) -> list[str]:
        with suppress(OSError, ValueError):
            sessions = json.loads((self.run / "record.json").read_text())["sessions"]
            return [said for session in sessions for said in session.get("events", [])]
        return []

    def goes_on(self, number: int) -> str:
        """Wait until the run goes on in this number of processes; returns the line that says so."""
        words = f"in {number} process"
        self.wait(lambda: any(words in said for said in self.events()))
        return next(said for said in reversed(self.events()) if words in said)

    def ended(self, *which: int) -> None:
        """Wait until these machines' commands have ended."""
        self.wait(lambda: all(self.processes[i].poll() is not None for i in which))

    def is_left(self, which: int) -> None:
        """Count the processes that are left on a machine `LEFT_S` after its command has ended, and end them."""
        self.ended(which)
        self.tries[-1].left = _num_left([self.machines[which]])
        self.machines[which].kill()

    def said(self, which: int) -> str:
        """The last error line of a machine, else its last line."""
        lines = self._log(which).read_text(errors="replace").splitlines() if self._log(which).exists() else []
        errors = [line for line in lines if line.startswith("fastarat: error: ")]
        return (errors or lines or ["nothing"])[-1].removeprefix("fastarat: error: ")

    def rank(self, which: int) -> int:
        """The process id of the one that trains on a machine."""
        for pid in self.machines[which].pids():
            with suppress(OSError):
                if b"\0RANK=" in Path(f"/proc/{pid}/environ").read_bytes():
                    return pid
        raise WorkError(f"nothing trains on {self.machines[which].name}")

    def end(self) -> int:
        """End what still runs, the first machine first; returns how many processes are left `LEFT_S` later."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)
        left = _num_left(self.machines)
        for host in self.machines:
            host.kill()
            host.plug(True)
        return left

    def _log(self, which: int) -> Path:
        return self.disks[which] / "log"


def _num_left(machines: list[Host]) -> int:
    end = time.monotonic() + LEFT_S
    while (left := sum(len(host.pids()) for host in machines)) and time.monotonic() < end:
        time.sleep(0.1)
    return left
