"""What one AutoAttack evaluation is, what each batch gave, and how both are kept so that it can go on."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastarat.attacks.captured import Graphs
from fastarat.attacks.settings import Norm
from fastarat.errors import UserError
from fastarat.files import lock, write_atomically, write_text

# A resumed run's clean logits may differ by what another algorithm for a convolution, or TF32, rounds otherwise.
SAME_MODEL = 1e-2
LOCK = "autoattack.lock"


class Record(NamedTuple):
    """What one attack did on one batch. On the CPU."""

    rows: Tensor
    """the batch: places among all images, int64 [B]"""
    broken: Tensor
    """places of the confirmed ones, int64 [M]"""
    x_adv: Tensor
    """their adversarial images [M, C, H, W]"""
    unconfirmed: Tensor
    """places of what the attack found and the check refused, int64"""
    zero_gradients: Tensor
    """searches of an APGD that began with a gradient of zero, and all its searches: int64 [2]"""
    seconds: Tensor
    """float64 scalar"""


class Task(NamedTuple):
    """What is evaluated, and how."""

    images: Tensor
    labels: Tensor
    norm: Norm
    eps: float
    seed: int
    batch: int
    attacks: tuple[str, ...]
    targets: int = 9
    steps: int = 20
    restarts: int = 1
    step: float | None = None
    engine: str = "fast"
    searched_apart: bool = False
    clean_logits: Tensor = torch.empty(0)
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


def nothing(task: Task) -> Record:
    """The record of no batch."""
    none = torch.zeros(0, dtype=torch.int64)
    return Record(none, none, task.pixels(slice(0)).cpu(), none, none.new_zeros(2), torch.tensor(0.0).double())


class State:
    """A directory with a file for what it belongs to, one for the clean logits, and one for each finished batch.

    As a context it keeps other processes, and other evaluations of this one, out of the directory.
    """

    def __init__(self, folder: Path | None, task: Task):
        self.folder, self.task, self._lock = folder, task, None

    def __enter__(self) -> "State":
        if self.folder is not None:
            try:
                self._open(self.folder, self.folder / "autoattack.json")
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
            self._lock = lock(folder / LOCK)
        except OSError as e:
            raise UserError(f"cannot use the directory {folder} for the state: {e.strerror}; give another") from None
        if self._lock is None:
            raise UserError(f"another evaluation is at work in {folder}: wait for it, or give another directory")
        try:
            for begun in folder.glob(".*.tmp"):
                begun.unlink()
            there = json.loads(description.read_text()) if description.exists() else {}
            if not isinstance(there, dict):
                raise ValueError
        except OSError as e:
            raise UserError(f"cannot use the directory {folder} for the state: {e.strerror}; give another") from None
        except ValueError:
            raise UserError(f"{description} is damaged: delete {folder}, and the evaluation starts anew") from None
        own = fingerprint(self.task)
        if not there and any(path.name != LOCK for path in folder.iterdir()):
            raise UserError(f"{folder} holds other files: give an empty directory for the state")
        if not there:
            write_text(description, json.dumps(own, indent=2) + "\n")
        elif there != own:
            other = ", ".join(key for key in own if there.get(key) != own[key]) or "format"
            raise UserError(f"{folder} belongs to another evaluation ({other}): give the same, or another directory")

    def settle(self, clean_logits: Tensor, random: bool) -> Tensor:
        """The clean logits that count: those of the first session, which others must come near to."""
        kept = self._load("clean.safetensors")
        if kept is None:
            self.save("clean.safetensors", {"logits": clean_logits.cpu().contiguous()})
            return clean_logits
        logits = kept["logits"].to(clean_logits.device)
        near = logits.shape == clean_logits.shape and bool(
            ((logits - clean_logits).norm(dim=1) <= SAME_MODEL * logits.norm(dim=1)).all()
        )
        if not near and not random:
            raise UserError(f"{self.folder} belongs to another model: delete it, or give another directory")
        return logits

    def record(self, file: str, rows: Tensor) -> Record | None:
        """What is saved of the batch `rows`, if it is."""
        kept = self._load(file)
        if kept is None:
            return None
        if set(kept) != set(Record._fields) or not torch.equal(kept["rows"], rows):
            raise UserError(f"{file} in {self.folder} does not fit what was done before: delete it and all later ones")
        return Record(**kept)

    def save(self, file: str, tensors: dict[str, Tensor]) -> None:
        """Write a file that is whole or not there. Raises `WorkError` if the disk is full."""
        if self.folder is not None:
            write_atomically(self.folder / file, lambda temporary: save_file(tensors, temporary))

    def _load(self, file: str) -> dict[str, Tensor] | None:
        if self.folder is None or not (self.folder / file).exists():
            return None
        try:
            return load_file(self.folder / file)
        except (SafetensorError, OSError):
            raise UserError(f"{self.folder / file} is damaged: delete it, and its batch is done again") from None


def fingerprint(task: Task) -> dict[str, object]:
    """What an evaluation is, but for its model."""

    def digest(tensor: Tensor) -> str:
        kind = f"{tensor.dtype} {list(tensor.shape)} ".encode()
        values = tensor.cpu().contiguous().flatten().view(torch.uint8)  # numpy has no bfloat16
        return hashlib.sha256(kind + values.numpy().tobytes()).hexdigest()

    settings = {name: value for name, value in task._asdict().items() if not isinstance(value, Tensor | Graphs | None)}
    settings |= {"attacks": list(task.attacks), "step": task.step}
    return {"format": 1, **settings, "images": digest(task.images), "labels": digest(task.labels)}
