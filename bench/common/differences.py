"""How far two runs that should have ended alike differ, in bits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fastarat.runs.checkpoint import load_checkpoint
from fastarat.runs.run import Run

TIMES = ("seconds", "evaluation_seconds", "images_per_s", "joules", "metrics")
"""what no two runs share; a checkpoint's metrics are those of the metrics' file"""


def num_different_bits(ours: Path, theirs: Path) -> int:
    """Bits of the last checkpoint and of the deployed weights; a number or text of them, or of the metrics, that
    differs counts as one."""
    states = [[_checkpoint(run), load_file(run / "model.safetensors"), _metrics(run)] for run in (ours, theirs)]
    return sum(_differences(*states))


def _checkpoint(run: Path) -> dict[str, Any]:
    state = load_checkpoint(Run(run).checkpoint("last"))
    return {name: value for name, value in state.items() if name not in TIMES}


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in line if name not in TIMES} for line in Run(run).metrics()]


def _differences(ours: Any, theirs: Any) -> Iterator[int]:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.shape == theirs.shape:
        mine, other = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (ours, theirs))
        yield sum(byte.bit_count() for byte in (mine ^ other).numpy().tobytes()) if not mine.equal(other) else 0
    elif isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for name, value in ours.items():
            yield from _differences(value, theirs[name])
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        for mine, other in zip(ours, theirs, strict=True):
            yield from _differences(mine, other)
    else:
        yield int(isinstance(ours, Tensor) or isinstance(theirs, Tensor) or json.dumps(ours) != json.dumps(theirs))
