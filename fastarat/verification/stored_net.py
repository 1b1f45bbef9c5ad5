"""Small nets stored as data: a list of layers in `arch_NAME.json`, tensors in safetensors. Nothing is unpickled."""

import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastarat.common.errors import UserError, unknown
from fastarat.common.json_files import read_json
from fastarat.common.tensors import read_tensors
from fastarat.common.typed import fits

Layer = dict[str, Any]
Tensors = dict[str, Tensor]
MOST = 64
"""the largest stride, and padding"""


class Applied(nn.Module):
    """A function without weights as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _whole(layer: Layer, key: str, default: int, least: int, most: int = MOST) -> int:
    """A whole number of a layer: a padding takes memory by its square."""
    value = layer.get(key, default)
    if not fits(value, int) or not least <= value <= most:
        raise ValueError(f"{key} is {reprlib.repr(value)}, expected {least} to {most}")
    return value


def _number(layer: Layer, key: str, default: float | None = None) -> float:
    value = layer.get(key, default)
    if not fits(value, float):
        raise ValueError(f"{key} is {reprlib.repr(value)}, expected a number")
    return float(value)


def _conv2d(layer: Layer, tensors: Tensors) -> nn.Module:
    width, given, *kernel = tensors["weight"].shape
    stride, padding = _whole(layer, "stride", 1, 1), _whole(layer, "padding", 0, 0)
    groups = _whole(layer, "groups", 1, 1, max(width, 1))
    return nn.Conv2d(given * groups, width, kernel, stride, padding, groups=groups, bias="bias" in tensors)  # type: ignore[arg-type]


def _scale(layer: Layer, tensors: Tensors) -> nn.Module:
    factor = _number(layer, "factor")
    return Applied(lambda x: x * factor)


def _quantize(layer: Layer, tensors: Tensors) -> nn.Module:
    """Rounds to multiples of 1 / levels, halves to even; the gradient is zero."""
    levels = _number(layer, "levels")
    return Applied(lambda x: torch.round(x * levels) / levels)


def _linear(layer: Layer, tensors: Tensors) -> nn.Module:
    width, given = tensors["weight"].shape
    return nn.Linear(given, width, bias="bias" in tensors)


def _batch_norm(layer: Layer, tensors: Tensors) -> nn.Module:
    return nn.BatchNorm2d(len(tensors["running_mean"]), eps=_number(layer, "eps", 1e-5), affine="weight" in tensors)


# Sizes are the stored tensors', so that layer and tensors cannot disagree.
OPERATIONS: dict[str, Callable[[Layer, Tensors], nn.Module]] = {
    "conv2d": _conv2d,
    "batchnorm2d": _batch_norm,
    "linear": _linear,
    "relu": lambda layer, tensors: nn.ReLU(),
    "flatten": lambda layer, tensors: nn.Flatten(),
    "global_avgpool": lambda layer, tensors: Applied(lambda x: x.mean((2, 3))),
    "scale": _scale,
    "quantize": _quantize,
}


def load_kit_model(folder: Path, name: str) -> nn.Module:
    """The float32 net called `name`, in eval mode: images [N, C, H, W] in [0, 1] to logits [N, K].

    `folder` holds `arch_NAME.json` and the weights it names (else `NAME.safetensors`). Raises `UserError` for
    a file that is missing or no such file, an operation that is not known, a layer without its tensors.
    """
    path = folder / f"arch_{name}.json"
    description = _read_description(path)
    weights = folder / (description.get("weights") or f"{name}.safetensors")
    if not weights.is_file():
        raise UserError(f"{weights} does not exist: the net's weights belong there")
    tensors, _ = read_tensors(weights)
    layers = [_build(layer, tensors, path, number) for number, layer in enumerate(description["layers"])]
    return nn.Sequential(*layers).eval()


def _read_description(path: Path) -> dict[str, Any]:
    description = read_json(path)
    found: dict[str, Any] = description if isinstance(description, dict) else {}
    layers, weights = found.get("layers", ""), found.get("weights", "")
    named = fits(layers, tuple[dict, ...]) and all(isinstance(layer.get("op"), str) for layer in layers)
    if not named or not isinstance(weights, str):
        raise UserError(f"{path} is no description of a net: give a JSON object with 'layers', each with its 'op'")
    if Path(weights).name != weights:
        raise UserError(f"{path}: the weights {weights[:80]!r} are not in its own folder")
    return description


def _build(layer: Layer, tensors: Tensors, path: Path, number: int) -> nn.Module:
    """One layer with its weights; `path` and `number` say where it stands."""
    operation, at = layer["op"], f"{path}, layer {number}"
    if operation not in OPERATIONS:
        raise UserError(f"{at}: {unknown('operation', operation, OPERATIONS)}")
    prefix = f"{layer['name']}." if isinstance(layer.get("name"), str) else None
    own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)} if prefix else {}
    try:
        module = OPERATIONS[operation](layer, own)
        module.load_state_dict(own)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{at} ({operation}): {str(error).strip().splitlines()[-1].strip()}") from error
    return module
