"""A kit of AutoAttack's stored results: images, nets as data, and for each net and norm what was computed on it."""

import math
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastarat.attacks.projections import lengths
from fastarat.common.arrays import read_npz
from fastarat.common.errors import UserError, first_line
from fastarat.common.json_files import read_json
from fastarat.config.attack import Norm
from fastarat.verification.stored_net import load_kit_model

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


NORMS: dict[str, Norm] = {"Linf": "linf", "L2": "l2"}
RESULT = re.compile(r"(aa|pgd|trace)_(.+)_(Linf|L2)(?:_(.+))?")
PATTERNS = ("arch_*.json", "data.npz", "unit_vectors.npz", "aa_*.npz", "pgd_*.npz", "trace_*.npz")


class Result(NamedTuple):
    """A file of results of one net in one norm."""

    stored: Stored
    kind: str
    """aa, pgd or trace"""
    net: str
    norm: Norm
    key: str
    """net and norm as files name them"""
    label: str
    """what it is called in a row"""
    run: str
    """of an aa file, what was run: sequential_seed0"""


class Kit:
    """The files of a folder. Raises `UserError` for what is missing, unreadable or does not fit."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        self.nets = sorted(path.stem.removeprefix("arch_") for path in folder.glob("arch_*.json"))
        self.results = [self._result(path) for path in sorted(folder.glob("*.npz")) if RESULT.fullmatch(path.stem)]
        self.units = Stored(folder / "unit_vectors.npz") if os.path.lexists(folder / "unit_vectors.npz") else None
        if not self.results and not self.units:
            raise UserError(
                f"{folder} holds no results to compare with: unit_vectors.npz, or aa_, pgd_ or trace_ files"
            )
        expected = folder / "expected.json"
        self.recorded = read_json(expected) if os.path.lexists(expected) else {}
        if not isinstance(self.recorded, dict):
            raise UserError(f"{expected} is no JSON object of what was run: write one, or leave it out")
        if self.results:
            data = Stored(folder / "data.npz")
            self.x = data.numbers("x_test", -1, -1, -1, -1).float().to(device)
            self.y = data.whole("y_test", len(self.x)).to(device)
            if not len(self.x) or not (self.x.min() >= 0 and self.x.max() <= 1):
                raise UserError(f"{data.path}: x_test are no images in [0, 1]")
        self.net = cache(self._net)

    def _result(self, path: Path) -> Result:
        kind, net, norm, run = RESULT.fullmatch(path.stem).groups(default="")  # type: ignore[union-attr]
        if net not in self.nets:
            raise UserError(f"{path} belongs to a net that is not there: {self.folder / f'arch_{net}.json'} is missing")
        label = " ".join(part for part in (net, norm, run.replace("_", " ")) if part)
        return Result(Stored(path), kind, net, NORMS[norm], f"{net}_{norm}", label, run)

    def _net(self, name: str) -> nn.Module:
        """The float32 net called `name`, which takes the images and has a logit for every label."""
        model, path = load_kit_model(self.folder, name), self.folder / f"arch_{name}.json"
        model.requires_grad_(False).to(self.device)
        try:
            logits = model(self.x[:1])
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:  # each layer in its own way
            shape = list(self.x.shape[1:])
            raise UserError(f"{path} takes no images {shape} of data.npz: {first_line(error)}") from error
        if logits.ndim != 2 or self.y.min() < 0 or self.y.max() >= logits.shape[1]:
            shape = f"{list(logits.shape[1:])} an image, and labels reach {int(self.y.max())}"
            raise UserError(f"{path} does not fit data.npz: it returns {shape}")
        return model

    def eps(self, result: Result) -> float:
        """The radius of the ball: as stored with the result or for its net and norm, else as far as images went. Raises
        `UserError` for what is none."""
        own = self.recorded.get(result.key)
        entries = [own.get(result.run), own, *own.values()] if isinstance(own, dict) else []
        found = [result.stored.scalar("eps")] if "eps" in result.stored else []
        found += [entry["eps"] for entry in entries if isinstance(entry, dict) and "eps" in entry]
        same = [other for other in self.results if other.key == result.key]
        found += [other.stored.scalar("eps") for other in same if "eps" in other.stored]
        eps = found[0] if found else max(self._farthest(other) for other in same)
        if not (isinstance(eps, (int, float)) and math.isfinite(eps) and eps > 0):
            raise UserError(f"{self.folder}: the radius of {result.key} is {eps}; give expected.json a number above 0")
        return float(eps)

    def _farthest(self, result: Result) -> float:
        """How far its images went from where they began, to six digits: attacks go to the ball's surface."""
        stored, far = result.stored, 0.0
        if result.kind == "aa" and "x_adv" in stored:
            shift = stored.numbers("x_adv", *self.x.shape) - self.x.cpu()
            far = float(lengths(shift, result.norm).max())
        for name in stored.arrays if result.kind == "trace" else ():
            if name.endswith("_iterates"):
                x = self.x.cpu()[stored.whole("index", -1)]
                shift = (stored.numbers(name, -1, *x.shape) - x).flatten(0, 1)
                far = max(far, float(lengths(shift, result.norm).max()))
        return float(f"{far:.6g}")
