"""Process groups in one process, for what only asks who else there is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastarat.common.distributed import World
from tests.helpers.step_parts import CPU

HOW = "spawn" if torch.cuda.is_available() else "fork"
"""of starting processes: quickly, where this one has nothing of CUDA's, which no fork survives"""


@contextmanager
def alone() -> Iterator[World]:
    """A process group of gloo with one process in it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield World(CPU, 0, 1, dist.group.WORLD)
    finally:
        dist.destroy_process_group()


@contextmanager
def first_of_two() -> Iterator[World]:
    """The first of two processes, the second of which is not there: what collectives give means nothing."""
    torch.compiler.reset()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield World(CPU, 0, 2, dist.group.WORLD)
    finally:
        dist.destroy_process_group()
