"""Several processes run only what each of them could compile, and the first of a machine compiles before its others.

A process whose compiler fails alone would leave the others waiting for it in the step's first collective: so all meet
after compiling, before any of them runs. Before that they meet in between: what the first process of a machine has
compiled, the others find in the folder of compiled code. A process that fails goes to no meeting of these: it says so
at the one in which all meet after their first step (`fastarat.training.fallback`), the others hear it at theirs, and
leave the step.
"""

from collections.abc import Callable
from typing import Any

import torch

from fastarat.common.distributed import World, largest, said_of_others
from fastarat.common.errors import WorkError
from fastarat.common.processes import is_first_here

Compile = Callable[[torch.fx.GraphModule, list[Any]], Callable]
"""a backend of torch.compile"""


class LeftBehind(WorkError):
    """Another process cannot go this way; all have to go `way`."""

    def __init__(self, way: int):
        super().__init__("another process could not take the step")
        self.way = way


def meet(way: int, world: World) -> None:
    """Wait until all processes come, each with the way it goes: a number, larger for a plainer one.

    Raises `LeftBehind` if one of them goes by a plainer way than this, and `WorkError` if one has ended.
    """
    try:
        (plainest,) = largest((way,), world)
    except RuntimeError as error:
        if said := said_of_others(str(error), world):
            raise WorkError(said) from error
        raise
    if plainest != way:
        raise LeftBehind(plainest)


def in_turn(compile_graph: Compile, meet: Callable[[], None], world: World) -> Compile:
    """`compile_graph`, by the first process of each machine and then by the others; what it gives runs for the first
    time when all have it. A process whose code names a GPU of its own would find no other's, and waits for none."""
    shares = world.device.index in (None, 0)
    waits = shares and not is_first_here()

    def compiled_in_turn(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable:
        if waits:
            meet()
        compiled, meetings = compile_graph(graph, inputs), 1 if waits else 2

        def run(*args: Any) -> Any:
            nonlocal meetings
            while meetings:
                meetings -= 1
                meet()
            return compiled(*args)

        return run

    return compiled_in_turn
