"""Arrays of a file, whose names, kinds and shapes are checked where they are used."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastarat.common.errors import UserError
from fastarat.common.npz import read_npz

KINDS = {"numbers": "f", "whole numbers": "iu", "flags": "b", "any numbers": "fiu"}


class Stored:
    """The arrays of one .npz file. Nothing in it is unpickled; raises `UserError` if it cannot be read."""

    def __init__(self, path: Path):
        self.path, self.arrays = path, read_npz(path)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def numbers(self, name: str, *shape: int) -> Tensor:
        """The floats `name`, float32 or float64; -1 stands for any length. Raises `UserError` for anything else."""
        values = self._tensor(name, "numbers", shape)
        return values if values.dtype == torch.float64 else values.float()

    def whole(self, name: str, *shape: int) -> Tensor:
        """The same for whole numbers: int64."""
        return self._tensor(name, "whole numbers", shape).long()

    def flags(self, name: str, *shape: int) -> Tensor:
        """The same for bool."""
        return self._tensor(name, "flags", shape)

    def scalar(self, name: str) -> float:
        """The single number `name`."""
        return float(self._tensor(name, "any numbers", ()))

    def _tensor(self, name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.arrays:
            raise UserError(f"{self.path} has no entry {name}: is it complete?")
        found = self.arrays[name]
        fits = found.ndim == len(shape) and all(n in (-1, m) for n, m in zip(shape, found.shape, strict=True))
        if not fits or found.dtype.kind not in KINDS[kind]:
            wanted = f"{kind} {[n if n >= 0 else 'any' for n in shape]}"
            raise UserError(f"{self.path}: {name} is {found.dtype} {list(found.shape)}, expected {wanted}")
        if kind == "whole numbers":
            found = found.astype(np.int64)
        return torch.from_numpy(np.array(found, dtype=found.dtype.newbyteorder("=")))
