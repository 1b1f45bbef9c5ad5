"""Training state and deployable weights on disk. Files are data: nothing is unpickled but plain tensors."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastarat.common.errors import UserError
from fastarat.common.files import write_atomically
from fastarat.common.pickled import ZIP, read_pickled
from fastarat.common.typed import fits
from fastarat.runs.metrics import is_line
from fastarat.runs.weights import FORMAT, check_format

# What a checkpoint holds of these names. Others are checked where they are used.
TYPES: dict[str, Any] = {
    "description": dict,
    "fingerprint": str | None,
    "labels_fingerprint": str | None,
    "extra_fingerprint": str | None,
    "batch_norm": Literal["split", "shared", "mixed"],
    "step": int,
    "epoch": int,
    "seconds": float,
    "best_robust": float,
    "metrics": list,
    "model": dict,
    "method": dict,
    "momenta": list,
    "precision": dict,
    "average": dict | None,
    "totals": Tensor,
    "random": dict,
}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write training state (nested dicts of tensors, numbers and strings). Raises as `write_atomically` does."""
    state = {"fastarat_checkpoint": FORMAT, **state}
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read training state to the CPU. Raises `UserError` for a file that is truncated, damaged, foreign or newer."""
    state = read_pickled(path, (ZIP,), "delete it, and --resume takes the one before")
    if not isinstance(state, dict) or "fastarat_checkpoint" not in state:
        raise UserError(f"{path} is no fastarat checkpoint; 'fastarat convert' reads the published AR-AT code's")
    check_format(state["fastarat_checkpoint"], path)
    for name, kind in TYPES.items():
        if name in state and not fits(state[name], kind):
            raise UserError(f"{path} is no training checkpoint of this version: its {name} does not fit")
    if state.get("step", 0) < 0 or state.get("epoch", 1) < 1 or not all(map(is_line, state.get("metrics", []))):
        raise UserError(f"{path} is no training checkpoint of this version: its step, epoch or metrics do not fit")
    return state


def numbered(directory: Path, kind: str) -> dict[int, Path]:
    """The files KIND-NUMBER.pt of a folder by their numbers, in order. Others are left alone: they are not ours."""
    numbers = {path.stem.removeprefix(f"{kind}-"): path for path in directory.glob(f"{kind}-*.pt")}
    ours = {int(number): path for number, path in numbers.items() if number.isascii() and number.isdecimal()}
    return dict(sorted(ours.items()))


def newest_first(directory: Path) -> list[Path]:
    """The numbered checkpoints of a run, newest first."""
    return list(reversed(numbered(directory, "step").values()))
