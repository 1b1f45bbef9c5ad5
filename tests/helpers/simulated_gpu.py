"""The simulated GPU (`tests/simulated_gpu`): whether this process has one, and what it counted."""

import ctypes
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from fastarat.common.distributed import World
from fastarat.config import Config
from fastarat.data.images.dataset import Dataset, Images
from fastarat.data.loading.choose import Opened
from fastarat.training.build import start_training
from fastarat.training.choices import Choices
from fastarat.training.compiling.compiled import StepBySize

IS_HERE = torch.cuda.is_available() and "(simulated)" in torch.cuda.get_device_name()
HAS_VALUES = os.environ.get("SIMGPU_VALUES") == "1"

pytestmark = [
    pytest.mark.simulated_gpu,
    pytest.mark.skipif(not IS_HERE, reason="needs the simulated GPU: make simulated-gpu"),
]
counted_only = pytest.mark.skipif(HAS_VALUES, reason="counts real launches: SIMGPU_VALUES=0")
values_only = pytest.mark.skipif(not HAS_VALUES, reason="needs true values: SIMGPU_VALUES=1")

WAITS = ("device_syncs", "stream_syncs", "event_syncs", "sync_memcpys")
HOST_COPIES = ("h2d", "d2h")
ALLOCATIONS = ("mallocs", "frees", "host_allocs")


@dataclass
class Counts:
    """What was asked of the device within `counting`."""

    stats: dict[str, int] = field(default_factory=dict)
    kernels: dict[str, list[int]] = field(default_factory=dict)
    """by name: launched at once, become a node of a graph, replayed, launched at once by a thread that captured"""

    def _sum(self, column: int, *, copies: bool) -> int:
        return sum(
            numbers[column]
            for name, numbers in self.kernels.items()
            if name.startswith(("memcpy", "memset")) == copies and not name.startswith("UNIMPLEMENTED")
        )

    @property
    def launches(self) -> int:
        """Kernels that the host launched one by one."""
        return self._sum(0, copies=False)

    @property
    def copies(self) -> int:
        """Copies and fills that the host asked for one by one."""
        return self._sum(0, copies=True)

    @property
    def nodes(self) -> int:
        """Kernels, copies and fills that graphs replayed."""
        return self._sum(2, copies=False) + self._sum(2, copies=True)

    @property
    def stray(self) -> int:
        """Kernels that a thread launched while it captured another stream: they are not in the graph."""
        return self._sum(3, copies=False)

    @property
    def disturbances(self) -> dict[str, int]:
        """Waits, copies from or to the host, allocations, broken captures, modules loaded: what a step has none of."""
        names = (*WAITS, *HOST_COPIES, *ALLOCATIONS, "captures", "capture_errors", "module_loads")
        return {name: self.stats[name] for name in names if self.stats[name]}

    @property
    def families(self) -> Counter[str]:
        """Launches and nodes by kind of kernel."""
        found: Counter[str] = Counter()
        for name, (launched, _, replayed, _) in self.kernels.items():
            found[family(name)] += launched + replayed
        return +found


def family(name: str) -> str:
    """The kind of a kernel: whose it is, and roughly what it does."""
    if name.startswith(("cudnn:", "cublas", "nccl:", "memcpy", "memset")):
        return name.partition("[")[0]
    if name.startswith("drv:triton_"):
        return "inductor"
    return "fastarat" if name.startswith("drv:") else "ATen"


def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libsimgpu.so")


def reset() -> None:
    """Start counting anew."""
    _library().simgpu_reset()


def read(counts: Counts) -> Counts:
    """Put what was counted since `reset` there."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "counts.json")
        _library().simgpu_dump(str(path).encode())
        found: dict[str, Any] = json.loads(path.read_text())
    counts.stats, counts.kernels = found["stats"], found["kernels"]
    return counts


@contextmanager
def counting() -> Iterator[Counts]:
    """Counts what is asked of the device within; filled at the end. Waits for nothing itself within."""
    torch.cuda.synchronize()
    counts = Counts()
    reset()
    yield counts
    read(counts)


def black_images(size: int, channels: int, num_images: int) -> Dataset:
    """A set of 10 classes, as training and as test images."""
    images = Images(np.zeros((num_images, size, size, channels), np.uint8), np.arange(num_images) % 10)
    return Dataset("black images", images, images, tuple("0123456789"), 255, "")


def step_counts(config: Config, dataset: Dataset, choices: Choices) -> Counts:
    """What the sixth step asks of the device: by then the allocator has all that it needs."""
    device = torch.device("cuda", 0)
    training, step = start_training(config, Opened(dataset, "resident", ""), choices, World(device))
    *first, last = islice(training.loader.batches(1), 6)
    for batch in first:
        training.advance(step, batch)
    frames = sum(counters["frames"].values())
    with counting() as counts:
        training.advance(step, last)
    assert sum(counters["frames"].values()) == frames, "it was compiled again"
    if isinstance(step, StepBySize):
        step.close()
    return counts
