"""Read checkpoints of the published AR-AT code, and make them runs of ours.

The net is recognised by its tensors: `linear.weight` ends a ResNet-18, `fc.weight` a wide ResNet whose
depth and width are in the shapes.
"""

import pickle
import re
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastarat.checkpoint import Description, save_weights
from fastarat.config import Config, published_code
from fastarat.engine.precision import Precision
from fastarat.errors import UserError
from fastarat.methods.arat import ARAT
from fastarat.methods.settings import ARATConfig
from fastarat.models.convert import feature_widths, plain_branch, tap_layers
from fastarat.models.published import published_model, published_predictors, split_layers
from fastarat.models.registry import build_model
from fastarat.models.settings import ModelConfig
from fastarat.record import environment
from fastarat.run import Run

IMAGE_SHAPE = (3, 32, 32)


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint (.pt, .pth or .safetensors) by their names there.

    Raises `UserError` for a file that is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors or is no checkpoint, and is not loaded: save its state_dict() alone"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError, zipfile.BadZipFile):
        raise UserError(f"{path} is truncated or no checkpoint") from None
    return _tensors(state, path)


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    """The state dict itself, however deep it is wrapped, without the `module.` of parallel wrappers."""
    if isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values()):
        return {name.removeprefix("module."): value for name, value in state.items()}
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            return _tensors(state[key], path)
    raise UserError(f"{path} holds no state_dict of tensors")


def recognise(tensors: dict[str, Tensor], path: Path) -> tuple[str, int]:
    """The name of the net and its number of classes."""
    if "linear.weight" in tensors:
        return "resnet18", len(tensors["linear.weight"])
    if "fc.weight" in tensors:
        blocks = {m.group(1) for name in tensors if (m := re.match(r"block1\.layer\.(\d+)\.", name))}
        return f"wrn-{6 * len(blocks) + 4}-{tensors['fc.weight'].shape[1] // 64}", len(tensors["fc.weight"])
    raise UserError(f"{path} is no checkpoint of the published AR-AT code: it has neither linear.weight nor fc.weight")


def load_published(path: Path) -> tuple[nn.Module, ARAT, str, int]:
    """Our split-batch-norm net and method with the file's weights, the net's name and its number of classes.

    Predictors that the file does not hold keep their initial weights; every other tensor must fit.
    """
    tensors = read_published(path)
    name, num_classes = recognise(tensors, path)
    model = build_model(name, num_classes)
    layers: tuple[str, ...] = model.aligned_layers  # type: ignore[assignment]
    tap_layers(model, layers)
    method = ARAT(ARATConfig(gamma=30 if name == "resnet18" else 100), feature_widths(model, IMAGE_SHAPE, layers))
    wanted = published_model(model.state_dict(), split_layers(model))
    if any(name.startswith("predictor.") for name in tensors):
        wanted |= published_predictors(method.state_dict(), layers)
    given = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    if "predictor." not in " ".join(wanted):
        given = {name: t for name, t in given.items() if not name.startswith("predictor.")}
    _copy(wanted, given, path)
    return model, method, name, num_classes


def _copy(wanted: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        problem = f"lacks {missing[0]}" if missing else f"has the unknown tensor {extra[0]}"
        raise UserError(f"{path} {problem} ({len(missing)} missing, {len(extra)} unknown in all)")
    for name, target in wanted.items():
        if target.shape != given[name].shape:
            raise UserError(f"{path}: {name} is {tuple(given[name].shape)}, expected {tuple(target.shape)}")
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(given[name])


def convert(path: Path, out: Path, data: str | None = None) -> Run:
    """Make a run directory of a published checkpoint: both branches in a checkpoint, `adv` deployable."""
    model, method, name, num_classes = load_published(path)
    config = published_code(
        Config(
            recipe="published-checkpoint",
            data=data or ("cifar100" if num_classes == 100 else "cifar10"),
            model=ModelConfig(name),
            method=replace(method.settings, layers=method.layers),
        )
    )
    channels, height, width = IMAGE_SHAPE
    description = Description(
        name,
        num_classes,
        channels,
        (height, width),
        255,
        tuple(str(i) for i in range(num_classes)),
        config.data,
        config.attack.norm,
        config.attack.eps_255,
        config.method.name,
    )
    run = Run(out)
    run.create(config, {**environment(), "converted_from": path.name})
    run.save(_state(model, method, description), keep=1)
    save_weights(run.weights_file, plain_branch(model), description)
    return run


def _state(model: nn.Module, method: ARAT, description: Description) -> dict[str, Any]:
    """A checkpoint at step 0 with these weights: `train --resume` goes on training them."""
    parameters = [*model.parameters(), *method.parameters()]
    return {
        "description": asdict(description),
        "batch_norm": "split",
        "step": 0,
        "epoch": 1,
        "seconds": 0.0,
        "best_robust": -1.0,
        "metrics": [],
        "model": model.state_dict(),
        "method": method.state_dict(),
        "momenta": [torch.zeros_like(parameter) for parameter in parameters],
        "precision": Precision("fp32", torch.device("cpu")).state_dict(),
        "average": None,
        "totals": torch.zeros(len(method.metrics), dtype=torch.float64),
        "random": {"cpu": torch.get_rng_state(), "cuda": []},
    }
