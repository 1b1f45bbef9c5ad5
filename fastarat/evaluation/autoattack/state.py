"""What one AutoAttack evaluation is, what each batch gave, and how both are kept so that it can go on."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastarat.attacks.cuda_graphs import Graphs
from fastarat.attacks.projections import lengths
from fastarat.common.errors import UserError
from fastarat.common.files import TEMPORARY, remove_unfinished, write_text
from fastarat.common.json_files import read_json
from fastarat.common.locks import lock
from fastarat.common.tensors import checksum, read_tensors, write_tensors
from fastarat.config.attack import Norm
from fastarat.config.evaluation import EvaluationSettings

# A resumed run's clean logits may differ by what another algorithm for a convolution, or TF32, rounds otherwise;
# its gradients by more, since a rounding may switch a ReLU.
SAME_LOGITS = 1e-2
SAME_GRADIENTS = 0.1
LOCK = "autoattack.lock"
FORMAT = 5
"""the version of a kept state; one of another version is refused"""
DESCRIPTION = "autoattack.json"
CLEAN = "clean.safetensors"
# What an image that broke a model may be outside the ball: roundings of float32.
TOLERANCE: dict[Norm, float] = {"linf": 1e-6, "l2": 1e-5}


class BatchOutcome(NamedTuple):
    """What one attack did on one batch. On the CPU."""

    rows: Tensor
    """the batch: places among all images, int64 [B]"""
    broken: Tensor
    """places of the confirmed ones, int64 [M]"""
    x_adv: Tensor
    """their adversarial images [M, C, H, W]"""
    unconfirmed: Tensor
    """places of what the attack found and the check refused, int64"""
    undefined: Tensor
    """of the broken, those whose logits predict nothing, as NaN: int64"""
    not_attackable: Tensor
    """places of the images that are not broken and on which the attack never had a direction to follow: int64"""
    zero_gradients: Tensor
    """searches of an APGD that began with a gradient of zero, and all its searches: int64 [2]"""
    seconds: Tensor
    """float64 scalar"""


class Task(NamedTuple):
    """What is evaluated, and how."""

    images: Tensor
    """[N, C, H, W], bytes or numbers in [0, 1]"""
    labels: Tensor
    """int64 [N]"""
    settings: EvaluationSettings
    searched_apart: bool = False
    """whether the attacks look at the model in another precision"""
    weights: str = ""
    """checksum of the model's parameters and buffers, where results are kept for a later call"""
    clean_logits: Tensor = torch.empty(0)
    """[N, K]"""
    graphs: Graphs | None = None
    """with which the attacks run captured"""

    def pixels(self, rows: Tensor | slice) -> Tensor:
        """The images `rows` as numbers in [0, 1]."""
        return as_numbers(self.images[rows])


def as_numbers(x: Tensor) -> Tensor:
    """Bytes as numbers in [0, 1]; float64 stays so, all else is float32."""
    if x.dtype == torch.uint8:
        return x.float() / 255
    return x if x.dtype == torch.float64 else x.float()


def nothing(task: Task) -> BatchOutcome:
    """The outcome of no batch."""
    none = torch.zeros(0, dtype=torch.int64)
    pixels, seconds = task.pixels(slice(0)).cpu(), torch.tensor(0.0).double()
    return BatchOutcome(none, none, pixels, none, none, none, none.new_zeros(2), seconds)


class State:
    """A directory with a file for what it belongs to, one for the clean logits, and one for each finished batch.

    As a context it keeps other processes, and other evaluations of this one, out of the directory; of several that
    share the work one is its owner, and settles it for all before the others look into it.
    """

    def __init__(self, folder: Path | None, task: Task, *, is_owner: bool = True):
        self.folder, self.task, self.is_owner, self._lock = folder, task, is_owner, None

    def __enter__(self) -> "State":
        if self.folder is not None and self.is_owner:
            try:
                self._open(self.folder, self.folder / DESCRIPTION)
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *raised: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _open(self, folder: Path, description: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._require_own(folder)  # before anything of ours is in it
            self._lock = lock(folder / LOCK)
            if self._lock is None:
                raise UserError(f"another evaluation is at work in {folder}: wait for it, or give another directory")
            self._require_own(folder)
        except OSError as error:
            raise UserError(
                f"cannot use the directory {folder} for the state: {error.strerror}; give another"
            ) from error
        own = fingerprint(self.task)
        if not description.exists():
            write_text(description, json.dumps(own, indent=2) + "\n")
        elif (there := _described(description)) != own:
            if there.get("format") != FORMAT:
                raise UserError(
                    f"{folder} is of another version of fastarat: delete it, and the evaluation starts anew"
                )
            other = ", ".join(key for key in own if there.get(key) != own[key]) or "more settings"
            raise UserError(f"{folder} belongs to another evaluation ({other}): give the same, or another directory")
        remove_unfinished(folder)

    def _require_own(self, folder: Path) -> None:
        """Raise `UserError` for a directory in which others have put files, but no evaluation its own."""
        others = [path for path in folder.iterdir() if path.name != LOCK and not TEMPORARY.fullmatch(path.name)]
        if others and not (folder / DESCRIPTION).exists():
            raise UserError(f"{folder} holds other files: give an empty directory for the state")

    def settle(self, clean_logits: Tensor, gradients: Callable[[], Tensor], random: bool) -> Tensor:
        """The clean logits that count, which are the first session's. `gradients` gives those of some margins by their
        images: models may agree in all they say and differ in what leads attacks. Raises `UserError` for others than
        these, unless the model is `random`."""
        if self.folder is None:
            return clean_logits
        kept, own = self._load(CLEAN), {"logits": clean_logits, "gradients": gradients()}
        if kept is None:
            self.save(CLEAN, own)
            return clean_logits
        for name, tensor in own.items():
            if name not in kept or kept[name].shape != tensor.shape or kept[name].dtype != tensor.dtype:
                raise self._unfit(CLEAN)
        logits, slopes = (kept[name].to(clean_logits.device) for name in own)
        same = are_close(logits, clean_logits, SAME_LOGITS).all() and are_close(
            slopes.flatten()[None], own["gradients"].flatten()[None], SAME_GRADIENTS
        )
        if not (same or random):
            raise UserError(f"{self.folder} belongs to another model: delete it, or give another directory")
        return logits

    def look(self, clean_logits: Tensor) -> None:
        """Keep nothing in this process if its machine does not see the owner's directory, in which `clean_logits` are
        those that count: what lies under that name here is of another evaluation."""
        if self.folder is None or self.is_owner:
            return
        description = self.folder / DESCRIPTION
        is_there = description.exists() and _described(description) == fingerprint(self.task)
        kept = self._load(CLEAN) if is_there else None
        same = kept is not None and torch.equal(*(x.nan_to_num(0, 0, 0) for x in (kept["logits"], clean_logits)))
        self.folder = self.folder if same else None

    def outcome(self, file: str, rows: Tensor) -> BatchOutcome | None:
        """What is saved of the batch `rows`, if it is. Raises `UserError` for what no attack on it can have given."""
        kept = self._load(file)
        if kept is None:
            return None
        if set(kept) != set(BatchOutcome._fields) or not is_possible(BatchOutcome(**kept), rows, self.task):
            raise self._unfit(file)
        return BatchOutcome(**kept)

    def save(self, file: str, tensors: dict[str, Tensor]) -> None:
        """Write a file that is whole or not there. Raises `WorkError` if the disk is full."""
        if self.folder is not None:
            write_tensors(self.folder / file, tensors)

    def _load(self, file: str) -> dict[str, Tensor] | None:
        if self.folder is None or not (self.folder / file).exists():
            return None
        try:
            return read_tensors(self.folder / file, sealed=True)[0]
        except UserError as error:
            raise UserError(f"{self.folder / file} is damaged: delete it, and what it holds is done again") from error

    def _unfit(self, file: str) -> UserError:
        return UserError(
            f"{file} in {self.folder} does not fit what was done before: delete it and all later ones, or give "
            "another directory"
        )


def are_close(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Which rows of `second` [N, D] differ from those of `first` by this share of their length at most: bool [N]."""
    first, second = (rows.nan_to_num(0, 0, 0) for rows in (first, second))
    return (first - second).norm(dim=1) <= share * first.norm(dim=1)


def is_possible(outcome: BatchOutcome, rows: Tensor, task: Task) -> bool:
    """Whether an attack of `task` on the batch `rows` can have given this: types, places and adversarial images."""
    blank = nothing(task)
    for found, like in zip(outcome, blank, strict=True):
        if found.dtype != like.dtype or found.ndim != like.ndim or found.shape[1:] != like.shape[1:]:
            return False
    if not torch.equal(outcome.rows, rows) or outcome.zero_gradients.shape != blank.zero_gradients.shape:
        return False
    broken, others = outcome.broken, (outcome.unconfirmed, outcome.not_attackable)
    if not all(torch.isin(of, rows).all() and (of.diff() > 0).all() for of in (broken, outcome.undefined, *others)):
        return False
    if any(torch.isin(of, broken).any() for of in others) or not torch.isin(outcome.undefined, broken).all():
        return False
    (zero, searches), seconds = outcome.zero_gradients.tolist(), float(outcome.seconds)
    if not 0 <= zero <= searches or not 0 <= seconds < float("inf") or len(outcome.x_adv) != len(outcome.broken):
        return False
    x = task.pixels(outcome.broken.to(task.images.device)).cpu()
    return bool(are_inside(x, outcome.x_adv, task.settings.norm, task.settings.eps).all())


def are_inside(x: Tensor, x_adv: Tensor, norm: Norm, eps: float) -> Tensor:
    """Which of `x_adv` lie in [0, 1] and in the ball round `x`, both [B, C, H, W]: bool [B]."""
    inside = lengths(x_adv - x, norm).flatten() <= eps + TOLERANCE[norm]
    return inside & ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)


def _described(description: Path) -> dict[str, object]:
    """What a state says it belongs to. Raises `UserError` if it cannot be read."""
    try:
        there = read_json(description)
    except UserError:
        there = None
    if not isinstance(there, dict):
        raise UserError(f"{description} is damaged: delete {description.parent}, and the evaluation starts anew")
    return there


def fingerprint(task: Task) -> dict[str, object]:
    """What an evaluation is, but for what its model computes."""
    settings = asdict(task.settings)
    del settings["attack"], settings["dtype"]  # told by the next two, as the format has it
    settings |= {"attacks": list(task.settings.names), "searched_apart": task.searched_apart, "weights": task.weights}
    tensors = {name: checksum({name: getattr(task, name).cpu().contiguous()}, {}) for name in ("images", "labels")}
    return {"format": FORMAT, **settings, **tensors}
