"""This process among others, asked before torch is there: one of several, the first of them, its parent's end.

What torch's launcher says of it stands in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread

from fastarat.common.errors import WorkError
from fastarat.common.files import write_text
from fastarat.common.ranks import SIGN, SIGNS, found_ranks

LAUNCHER = "FASTARAT_LAUNCHER"
"""environment variable that holds the process id of our own launcher"""
AGAIN = "FASTARAT_AGAIN"
"""environment variable of processes that our launcher starts again: why"""
GRACE_S = 8
"""seconds in which a process has to end after one that it works with has"""
_PR_SET_PDEATHSIG = 1


_ANOTHER = "by another launcher"


def launched() -> bool:
    """Whether this process was started by the elastic launcher, or `join_ranks` found another one."""
    return SIGN in os.environ


def join_ranks() -> None:
    """Take the numbers of whoever started this process among others for those of torch's launcher.

    Raises `UserError` where they do not tell its place, or on which machine the first process runs.
    """
    if ranks := found_ranks(os.environ):
        os.environ.update(ranks)
        os.environ.setdefault(SIGN, _ANOTHER)


def forget_ranks() -> None:
    """Let this process, and what it starts, be alone from here on, whoever started it among others."""
    for sign in SIGNS:
        os.environ.pop(sign, None)


def by_another() -> bool:
    """Whether another launcher than our own started this process among others."""
    return launched() and LAUNCHER not in os.environ


def why_again() -> str:
    """Why a launcher has started this process again, after one of those before it was lost; empty if none has."""
    if LAUNCHER in os.environ:
        return os.environ.get(AGAIN, "")
    again = launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return "torchrun has started the processes again" if again else ""


def may_start_again() -> bool:
    """Whether torchrun, which started this process, starts it again after a failure."""
    return by_another() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def on_one_machine() -> bool:
    """Whether all processes run on this machine."""
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")


def num_started() -> int:
    """How many processes the launcher started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def num_machines() -> int | None:
    """On how many machines our own launcher started processes; None of any other, which does not count them."""
    return int(os.environ["GROUP_WORLD_SIZE"]) if launched() and LAUNCHER in os.environ else None


def num_here(num_processes: int) -> int:
    """How many of `num_processes` processes run on this machine."""
    return min(num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))) if launched() else num_processes


def num_seen(num_gpus: int) -> int:
    """How many GPUs this process of a run on `num_gpus` has to see: with a launcher those up to its own, which is the
    first where each process sees its own alone, as srun (--gpus-per-task) and mpirun may have it."""
    if not launched():
        return num_gpus
    return min(num_gpus, 1 if os.environ[SIGN] == _ANOTHER else int(os.environ.get("LOCAL_RANK", "0")) + 1)


def num_cores() -> int:
    """How many cores of this machine this process may use: a scheduler, or taskset, may have left it a few."""
    # macOS binds no process to cores, and Python has no such function there.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_first() -> bool:
    """Whether this process is alone or the first of several: the one that prints."""
    return not launched() or os.environ.get("RANK", "0") == "0"


def is_first_here() -> bool:
    """Whether this process is alone or the first of several on this machine. Where each process sees its own GPU alone,
    LOCAL_RANK is 0 for all of them: of our launcher, whose ranks lie together on a machine, the rank tells."""
    if not launched():
        return True
    if LAUNCHER in os.environ:
        return int(os.environ["RANK"]) % int(os.environ["LOCAL_WORLD_SIZE"]) == 0
    return os.environ["LOCAL_RANK"] == "0"


def end_with_launcher() -> None:
    """Let SIGTERM come to this process when the launcher that started it ends, even if nobody could tell it, and let it
    be killed if it has not ended `GRACE_S` later, for it may wait for one that is gone. Nothing for any other process.
    """
    if launched():
        launcher = int(os.environ.get(LAUNCHER) or os.getppid())
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)  # wakes one that stands still (SIGSTOP)
        Thread(target=_end_after, args=(launcher,), daemon=True).start()


def _end_after(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


def say_to_launcher(text: str, code: int) -> bool:
    """Write why this process ends where its launcher looks; whether that launcher is ours, which then says it.

    A process that fails because another one did writes later than that one: the launcher says what it finds first.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not launched() or not file:
        return False
    message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}  # torch's form
    try:
        write_text(Path(file), json.dumps({"message": message, "code": code}))  # whole, or the launcher cannot read it
    except WorkError:
        return False
    return LAUNCHER in os.environ
