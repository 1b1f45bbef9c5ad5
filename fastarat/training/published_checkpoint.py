"""Read checkpoints of the published AR-AT code, and make them runs of ours.

The net is recognised by its tensors: `linear.weight` ends a ResNet-18, `fc.weight` a wide ResNet whose
depth and width are in the shapes.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastarat_kernels.implementations import PYTORCH
from torch import Tensor, nn

from fastarat.common.console import command
from fastarat.common.distributed import World
from fastarat.common.environment import environment
from fastarat.common.errors import UserError
from fastarat.common.pickled import LEGACY, ZIP, read_pickled
from fastarat.common.tensors import read_tensors
from fastarat.config import Config, published_code
from fastarat.config.method import ARATConfig
from fastarat.config.model import ModelConfig
from fastarat.data.images.dataset import Dataset, Images
from fastarat.data.loading.build import build_loader
from fastarat.methods.arat import ARAT
from fastarat.models.convert import plain_branch
from fastarat.models.features import feature_widths, tap_layers
from fastarat.models.published_names import published_model, published_predictors, split_layers
from fastarat.models.registry import build_model
from fastarat.runs.run import Run
from fastarat.runs.weights import save_weights
from fastarat.training.state import Training
from fastarat.training.step.precision import Precision
from fastarat.training.step.train_step import StepParts

IMAGE_SHAPE = (3, 32, 32)
OURS = "is fastarat's own, and convert takes checkpoints of the published AR-AT code alone"
WRAPPED = ("state_dict", "model_state_dict", "model", "net")
MOST_WRAPPED = 10
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint (.pt, .pth or .safetensors) by their names there.

    Raises `UserError` for a file that is missing, damaged, or holds more than tensors.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory: give a file")
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        tensors, texts = read_tensors(path)
        if "fastarat" in texts:
            raise UserError(f"{path} {OURS}: {command('eval', path)} reads it")
    else:
        tensors = _tensors(read_pickled(path, (ZIP, LEGACY), "save its state_dict() alone, or fetch it again"), path)
    return without_wrappers(tensors, path)


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    """The state dict itself, however deep it is wrapped."""
    if isinstance(state, dict) and "fastarat_checkpoint" in state:
        raise UserError(f"{path} {OURS}: 'fastarat eval RUN' reads it")
    for _ in range(MOST_WRAPPED):
        if not isinstance(state, dict):
            break
        if state and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
            return state
        state = next((state[key] for key in WRAPPED if isinstance(state.get(key), dict)), None)
    raise UserError(f"{path} holds no state_dict of tensors")


def without_wrappers(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors by their names in the net itself: without the prefixes of parallel and compiled nets, in any order.

    Raises `UserError` if two tensors then have one name.
    """
    named = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise UserError(f"{path} holds the same tensors with and without module.: save one net's state_dict()")
    return named


def recognise(tensors: dict[str, Tensor], path: Path) -> tuple[str, int]:
    """The name of the net and its number of classes. Raises `UserError` for no net of the published code."""
    head = next((name for name in ("linear.weight", "fc.weight") if name in tensors), None)
    if head is None:
        raise UserError(
            f"{path} is no checkpoint of the published AR-AT code: it has neither linear.weight nor fc.weight"
        )
    if tensors[head].ndim != 2:
        raise UserError(f"{path}: {head} is {list(tensors[head].shape)}, expected [classes, features]")
    num_classes, width = tensors[head].shape
    if not num_classes:
        raise UserError(f"{path}: {head} has no rows, one a class")
    if head == "linear.weight":
        return "resnet18", num_classes
    blocks = {m.group(1) for name in tensors if (m := re.match(r"block1\.layer\.(\d+)\.", name))}
    name = f"wrn-{6 * len(blocks) + 4}-{width // 64}"
    if problems := ModelConfig(name).problems():
        raise UserError(f"{path}: {problems[0]}")
    return name, num_classes


def load_published(path: Path) -> tuple[nn.Module, ARAT, str, int]:
    """Our split-batch-norm net and method with the file's weights, the net's name and its number of classes.

    Predictors that the file does not hold keep their initial weights; every other tensor must fit: else
    it raises `UserError`.
    """
    tensors = read_published(path)
    name, num_classes = recognise(tensors, path)
    given = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    predictors = {name: t for name, t in given.items() if name.startswith("predictor.")}
    own = {name: t for name, t in given.items() if name not in predictors}
    with torch.device("meta"):  # no memory is taken for a net before its tensors are there
        net = build_model(name, num_classes)
    _compare(published_model(net.state_dict(), split_layers(net)), own, path)
    model = build_model(name, num_classes)
    layers: tuple[str, ...] = model.aligned_layers  # type: ignore[assignment]
    tap_layers(model, layers)
    method = ARAT(ARATConfig(gamma=30 if name == "resnet18" else 100), feature_widths(model, IMAGE_SHAPE, layers))
    _copy(published_model(model.state_dict(), split_layers(model)), own, path)
    if predictors:
        _copy(published_predictors(method.state_dict(), layers), predictors, path)
    return model, method, name, num_classes


def _compare(wanted: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        problem = f"lacks {missing[0]}" if missing else f"has the unknown tensor {extra[0]}"
        raise UserError(f"{path} {problem} ({len(missing)} missing, {len(extra)} unknown in all)")
    for name, target in wanted.items():
        if target.shape != given[name].shape:
            raise UserError(f"{path}: {name} is {tuple(given[name].shape)}, expected {tuple(target.shape)}")
        if not given[name].is_floating_point():
            raise UserError(f"{path}: {name} is of {given[name].dtype}, expected numbers with a fraction")


def _copy(wanted: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    _compare(wanted, given, path)
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(given[name])


def convert(path: Path, out: Path, data: str | None = None) -> Run:
    """Make a run directory of a published checkpoint: both branches in a checkpoint, `adv` deployable.

    Raises `UserError` for a file that is no such checkpoint, or an `out` that is there already.
    """
    model, method, name, num_classes = load_published(path)
    config = published_code(
        Config(
            recipe="published-checkpoint",
            data=data or ("cifar100" if num_classes == 100 else "cifar10"),
            model=ModelConfig(name),
            method=replace(method.settings, layers=method.layers),
        )
    )
    training = _without_images(config, num_classes, model, method)
    run = Run(out)
    run.create(config, {**environment(), "converted_from": path.name})
    # Whoever goes on training it may have any images.
    run.save(training.state_dict() | {"fingerprint": None, "labels_fingerprint": None}, keep=1)
    run.finish_writing()
    save_weights(run.weights_file, plain_branch(model), training.description)
    run.unlock()
    return run


def _without_images(config: Config, num_classes: int, model: nn.Module, method: ARAT) -> Training:
    """A training at step 0 of these weights, which `train --resume` goes on with."""
    channels, height, width = IMAGE_SHAPE
    images = Images(np.zeros((0, height, width, channels), np.uint8), np.zeros(0, np.int64))
    classes = tuple(map(str, range(num_classes)))
    dataset = Dataset(Path(config.data).name, images, images, classes, max_value=255, fingerprint="")
    world, precision = World(torch.device("cpu")), Precision("fp32", torch.device("cpu"))
    parts = StepParts(
        model=model,
        method=method,
        attack=config.attack,
        optimizer=config.optimizer,
        precision=precision,
        world=world,
        kernels=PYTORCH,
        seed=config.seed,
    )
    loader = build_loader(
        config, "resident", images, max_value=255, world=world, dtype=precision.parameter_dtype, kernels=PYTORCH
    )
    return Training(config=config, dataset=dataset, held_out=images, loader=loader, parts=parts)
