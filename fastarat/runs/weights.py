"""Deployable weights on disk: safetensors with a description of the net."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastarat.common.errors import UserError
from fastarat.common.json_files import parse_json
from fastarat.common.tensors import read_header, read_tensors, write_tensors
from fastarat.common.typed import build, fits
from fastarat.config.attack import Norm
from fastarat.config.model import Branch, ModelConfig
from fastarat.models.registry import build_plain_model

FORMAT = 1


def check_format(found: object, path: Path) -> None:
    """Raise `UserError` for the format of a file that this version cannot read."""
    if not fits(found, int):
        raise UserError(f"{path} has an unknown format: it is no file of fastarat's")
    if found > FORMAT:  # type: ignore[operator]
        raise UserError(f"{path} was written by a newer fastarat (format {found}): upgrade")


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
    def from_dict(cls, values: Any, source: str) -> "Description":
        """From `asdict`, as a file gives it back. Raises `UserError`, which begins with `source`, for anything else."""
        source = f"{source}: its description"
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise UserError(f"{source} does not fit this version")
        described: Description = build(cls, values, source)
        if problem := described.problem():
            raise UserError(f"{source} does not fit: {problem}")
        return described

    def problem(self) -> str | None:
        """The first of its values that no net and no image can have, if there is one."""
        numbers = {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "height": self.image_size[0],
            "width": self.image_size[1],
            "max_value": self.max_value,
        }
        if found := next((f"{name} is {value}" for name, value in numbers.items() if value < 1), None):
            return found
        if len(self.classes) != self.num_classes:
            return f"it names {len(self.classes)} classes of {self.num_classes}"
        if self.eps_255 < 0 or self.epoch < 0:
            return f"eps_255 is {self.eps_255}, epoch {self.epoch}"
        if self.central_share is not None and not 0 < self.central_share <= 1:
            return f"central_share is {self.central_share}"
        return next(iter(ModelConfig(self.model).problems()), None)


def save_weights(path: Path, model: nn.Module, description: Description) -> None:
    """Write a plain net's weights as safetensors, with the description in the file's metadata."""
    write_tensors(path, model.state_dict(), {"fastarat": json.dumps({"format": FORMAT, **asdict(description)})})


def load_model(path: Path | str) -> tuple[nn.Module, Description]:
    """The plain net of a `model.safetensors`, in eval mode.

    Raises `UserError` for what `save_weights` has not written, or what has changed since. Nothing is built before the
    file's tensors are known to be those of the net that it names.
    """
    path = Path(path)
    header = read_header(path)
    description = _described(header.metadata, path)
    make = partial(build_plain_model, description.model, description.num_classes, description.in_channels)
    check_tensors(header.shapes, header.dtypes, make, num_classes=description.num_classes, path=path)
    tensors, _ = read_tensors(path)
    model = make()
    load_state(model, tensors, f"{path} does not hold the weights of the {description.model} that it describes")
    return model, description


def _described(metadata: Mapping[str, str], path: Path) -> Description:
    try:
        values = parse_json(metadata.get("fastarat", "{}"))
    except ValueError as error:
        raise UserError(f"{path} has a description that cannot be read ({error})") from error
    if not isinstance(values, dict) or "format" not in values:
        raise UserError(f"{path} has no fastarat description: give a model.safetensors of a run or an export")
    check_format(values.pop("format"), path)
    return Description.from_dict(values, str(path))


def load_state(model: nn.Module, tensors: Mapping[str, Any], problem: str) -> None:
    """`load_state_dict`, which has many ways to say that something does not fit; raises `UserError(problem)`."""
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, AssertionError) as error:
        raise UserError(problem) from error


def check_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    make: Callable[[], nn.Module],
    *,
    num_classes: int,
    path: Path,
) -> None:
    """Raise `UserError` unless the net of `make` has tensors of these names, shapes and kinds, and no others.

    A net of another package that cannot be made without memory is measured by its classes alone.
    """
    if not any(num_classes in shape for shape in shapes.values()):
        raise UserError(f"{path} says {num_classes} classes, and none of its tensors has that many rows")
    try:
        with torch.device("meta"):
            wanted = make().state_dict()
    except UserError:
        raise
    except Exception:  # another package's net may ask for values of tensors that have none
        return
    missing, extra = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    if missing or extra:
        problem = f"lacks {missing[0]}" if missing else f"has the unknown tensor {extra[0]}"
        raise UserError(f"{path} {problem}, so that it is not the net that it names")
    for name, tensor in wanted.items():
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(f"{path}: {name} is {list(shapes[name])}, the net that it names has {list(tensor.shape)}")
        if tensor.is_floating_point() != dtypes[name].is_floating_point:
            raise UserError(f"{path}: {name} is of {dtypes[name]}, the net that it names has {tensor.dtype}")
