"""What loaders give, and what decoders leave behind."""

import time
from pathlib import Path

import torch


def same(ours, theirs) -> bool:
    """Whether two batches have the same tensors."""
    return all(torch.equal(mine, their) for mine, their in zip(ours, theirs, strict=True))


def tasks() -> int:
    """Native threads of this process."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def settled(before: int) -> bool:
    """Whether there are no more native threads than `before`; the last ones may be on their way out."""
    deadline = time.monotonic() + 60
    while tasks() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    return tasks() <= before
