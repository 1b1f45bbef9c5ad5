"""Training state and deployable weights on disk. Files are data: nothing is unpickled but plain tensors."""

import json
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastarat.attacks.settings import Norm
from fastarat.errors import UserError
from fastarat.files import write_atomically
from fastarat.models.registry import build_plain_model
from fastarat.models.settings import Branch

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write training state (nested dicts of tensors, numbers and strings) atomically."""
    state = {"fastarat_checkpoint": FORMAT, **state}
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read training state to the CPU. Raises `UserError` for a file that is truncated, foreign or newer."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is no fastarat checkpoint: it holds more than tensors, and is not loaded") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise UserError(f"{path} is truncated or no checkpoint: delete it, and --resume takes the one before") from None
    if not isinstance(state, dict) or "fastarat_checkpoint" not in state:
        raise UserError(f"{path} is no fastarat checkpoint; 'fastarat convert' reads the published AR-AT code's")
    _check_format(state["fastarat_checkpoint"], path)
    return state


def _check_format(found: object, path: Path) -> None:
    if not isinstance(found, int):
        raise UserError(f"{path} has the unknown format {found!r}: it is no file of fastarat's")
    if found > FORMAT:
        raise UserError(f"{path} was written by a newer fastarat (format {found}): upgrade")


def newest_first(directory: Path) -> list[Path]:
    """The numbered checkpoints of a run, newest first."""
    return sorted(directory.glob("step-*.pt"), reverse=True)


@dataclass(frozen=True)
class Description:
    """What a deployable model is: enough to rebuild its net and feed it."""

    model: str
    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
    """height and width, pixels"""
    max_value: int
    """pixels are stored values / max_value"""
    classes: tuple[str, ...]
    data: str
    norm: Norm
    eps_255: float
    method: str
    averaging: str = "none"
    branch: Branch = "adv"
    epoch: int = 0
    central_share: float | None = None
    """how much of an image's shorter side it is shown, if images are resized for it"""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return (self.in_channels, *self.image_size)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Description":
        """From `asdict`, as JSON gives it back. Raises KeyError or TypeError for what does not fit."""
        image_size, classes = tuple(values["image_size"]), tuple(values["classes"])
        return cls(**{**values, "image_size": image_size, "classes": classes})


def save_weights(path: Path, model: nn.Module, description: Description) -> None:
    """Write a plain net's weights as safetensors, with the description in the file's metadata."""
    metadata = {"fastarat": json.dumps({"format": FORMAT, **asdict(description)})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_weights(path: Path) -> tuple[dict[str, Tensor], Description]:
    """Tensors and description of a file that `save_weights` wrote. Raises `UserError` for any other."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("fastarat", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path} is truncated or no safetensors file ({e})") from None
    if "format" not in metadata:
        raise UserError(f"{path} has no fastarat description: give a model.safetensors of a run or an export")
    _check_format(metadata.pop("format"), path)
    try:
        return tensors, Description.from_dict(metadata)
    except (KeyError, TypeError) as e:
        raise UserError(f"{path} has a description that does not fit this version ({e})") from None


def load_model(path: Path) -> tuple[nn.Module, Description]:
    """The plain net of a `model.safetensors`, in eval mode."""
    tensors, description = load_weights(path)
    model = build_plain_model(description.model, description.num_classes, description.in_channels)
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise UserError(f"{path} does not hold the weights of the {description.model} that it describes") from None
    return model, description
