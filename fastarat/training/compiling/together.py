"""Several processes run only what each of them could compile; one compiles, and the others find its code kept.

A process whose compiler fails alone would leave the others waiting for it in the step's first collective: so all meet
after compiling, before any of them runs. A process that fails goes to no meeting of these: it says so at the one in
which all meet after their first step (`fallback`), the others hear it at theirs, and leave the step.

One that fails while its step runs has left collectives that the others are in, or have queued on their devices: there
is no other way then, unless all fail so, who stand at the same place.
"""

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import torch

from fastarat.common.console import notice
from fastarat.common.distributed import OF_ANOTHER, World, largest, said_of_others
from fastarat.common.durations import duration
from fastarat.common.errors import WorkError
from fastarat.training.compiling.code_folder import cache_folder

LONGEST_WAIT_S = 900
"""a wide net's first compilation takes minutes"""
_LOOK_S = 0.1

Compile = Callable[[torch.fx.GraphModule, list[Any]], Callable]
"""a backend of torch.compile"""


class LeftBehind(WorkError):
    """Another process cannot take this step; all have to go on at `level`."""

    def __init__(self, level: int):
        super().__init__("another process could not take the step")
        self.level = level


class NoWayOn(WorkError):
    """Another process has left the step in the middle: what this one has begun with it does not end."""

    def __init__(self) -> None:
        super().__init__(f"{OF_ANOTHER} has left the step in the middle")


def meet(level: int, world: World) -> None:
    """Wait until all processes come, each with the level at which it runs: a number, larger for a plainer step.

    Raises `LeftBehind` if one of them runs at a plainer level than this, `NoWayOn` if its step failed while it ran, and
    `WorkError` if one has ended.
    """
    plainest = agreed(level, world)
    if plainest != level:
        raise LeftBehind(plainest)


def agreed(level: int, world: World, *, failed: bool = False) -> int:
    """The plainest of the levels that all processes say at the meeting where they are; `failed`: this one's step failed
    while it ran. Raises as `meet` does, `NoWayOn` also where this process failed alone."""
    try:
        plainest, some_failed, some_did_not = largest((level, failed, not failed), world)
    except RuntimeError as error:
        if said := said_of_others(str(error), world):
            raise WorkError(said) from error
        raise
    if some_failed and some_did_not and world.control is not None:
        raise NoWayOn
    return plainest


def run_together(compile_graph: Compile, meet: Callable[[], None]) -> Compile:
    """`compile_graph`, of which what it gives runs for the first time when all processes have it.

    Nobody meets while compiling: two processes need not be asked for code equally often.
    """

    def compiled_by_all(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable:
        compiled, met = compile_graph(graph, inputs), False

        def run(*args: Any) -> Any:
            nonlocal met
            if not met:
                met = True
                meet()
            return compiled(*args)

        return run

    return compiled_by_all


def one_first(compile_graph: Compile) -> Compile:
    """`compile_graph`, for which the first process that comes with a graph is alone; those that come meanwhile wait,
    and find its code kept in the folder that all share. On a disk without locks each compiles for itself."""
    folder = cache_folder()

    def compiled_once(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable:
        devices = sorted({str(value.device) for value in inputs if isinstance(value, torch.Tensor)})
        name = hashlib.sha256(repr((graph.code, devices)).encode()).hexdigest()[:16]
        with _after_the_first(folder / "locks" / f"fastarat-{name}.lock") if folder else nullcontext():
            return compile_graph(graph, inputs)

    return compiled_once


@contextmanager
def _after_the_first(path: Path) -> Iterator[None]:
    """Let the first process that comes here go in alone, and all others when it is out."""
    with ExitStack() as held:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(path.open("a+"))  # NFS shares no lock of what cannot be read
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _wait(file)
            held.callback(fcntl.flock, file, fcntl.LOCK_UN)  # children that were forked meanwhile have the file too
        yield


def _wait(file: IO[str]) -> None:
    """Until the first one is out; not for ever, since it may be another run's, and stand still."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    while time.monotonic() < deadline:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        time.sleep(_LOOK_S)
    notice(f"the step is compiled here too: another process has been at it for {duration(LONGEST_WAIT_S)}")
