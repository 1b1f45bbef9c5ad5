"""The model that a run or a file stands for; the teacher that a method starts from."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastarat.common.console import command, notice
from fastarat.common.errors import UserError
from fastarat.common.tensors import Damaged
from fastarat.config.model import Branch
from fastarat.data.images.classes import match_classes
from fastarat.models.convert import plain_branch
from fastarat.models.registry import build_model
from fastarat.runs.checkpoint import load_checkpoint
from fastarat.runs.run import Run
from fastarat.runs.weights import Description, check_tensors, load_model, load_state


def load_deployed(path: Path, checkpoint: str | None = None, branch: Branch = "adv") -> tuple[nn.Module, Description]:
    """The plain net of a run (its deployed weights, or a branch of a checkpoint) or of a model.safetensors.

    Raises `UserError` for what is neither, or has no such checkpoint or branch.
    """
    if not path.exists():
        what = "is a link to what is not there" if path.is_symlink() else "does not exist"
        nets = "MODULE:FUNCTION or FILE.py:FUNCTION"
        raise UserError(f"{path} {what}: give a run's directory, a model.safetensors, {nets}")
    if path.is_file():
        if checkpoint is not None or branch != "adv":
            raise UserError(f"{path} holds one branch: --checkpoint and --branch need a run's directory")
        return _load(
            path,
            "give a run, an export or its model.safetensors; 'fastarat convert' reads checkpoints of the AR-AT code, "
            "and eval takes any other net as MODULE:FUNCTION or FILE.py:FUNCTION",
        )
    exported = path / "model.safetensors"
    # A link that leads nowhere is there: what it stood for is missed, and nothing else is taken in its place.
    if not os.path.lexists(path / "config.json") and os.path.lexists(exported):
        return load_deployed(exported, checkpoint, branch)
    run = Run(path)
    run.config()
    if checkpoint is None and branch == "adv" and os.path.lexists(run.weights_file):
        return _load(
            run.weights_file,
            f"--checkpoint last takes the newest checkpoint, {command('train', '--resume', path)} writes it anew",
        )
    if checkpoint is None and branch == "adv":
        notice(f"{path} has not finished: taking its newest checkpoint")
    return from_checkpoint(run.checkpoint(checkpoint or "last"), branch)


def _load(path: Path, fix: str) -> tuple[nn.Module, Description]:
    """`load_model`, which knows nothing of other ways to a model."""
    try:
        return load_model(path)
    except UserError as error:
        if path.is_file() and not isinstance(error, Damaged):
            raise  # it names a fix of its own
        raise UserError(f"{error}: {fix}") from error


def images_of(path: Path, description: Description) -> str:
    """What names the images that a model at `path` was trained on: a run's own `--data`, or what a file says.

    A file that is given away names the data set alone, not where it lay.
    """
    return Run(path).config().data if os.path.lexists(path / "config.json") else description.data


def from_checkpoint(path: Path, branch: Branch) -> tuple[nn.Module, Description]:
    """One branch of a training checkpoint as a plain net; the EMA average where the run keeps one.

    Raises `UserError` for a checkpoint that is damaged or of another version, and for a branch that it does not have.
    """
    state = load_checkpoint(path)
    missing = [name for name in ("description", "batch_norm", "model") if name not in state]
    if missing:
        raise UserError(f"{path} is no training checkpoint of this version (it lacks {missing[0]})")
    description, kind = Description.from_dict(state["description"], str(path)), state["batch_norm"]
    tensors = _averaged(state, path) if description.averaging == "ema" else state["model"]
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} is no training checkpoint of this version (its model holds more than tensors)")
    make = partial(build_model, description.model, description.num_classes, description.in_channels, kind)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    check_tensors(shapes, dtypes, make, num_classes=description.num_classes, path=path)
    model = make()
    load_state(model, tensors, f"{path} does not hold the weights of the {description.model} that it describes")
    if branch == "clean" and kind != "split":
        raise UserError(f"{path}: this model was trained with one set of batch-norms; it has no clean branch")
    return plain_branch(model, branch), replace(description, branch=branch)


def _averaged(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The tensors of the average, once it has begun; of the net itself before."""
    average = state.get("average")
    if not isinstance(average, dict) or not isinstance(average.get("model"), dict):
        raise UserError(f"{path} is no training checkpoint of this version (its average does not fit)")
    return average["model"] if average.get("num_snapshots") else state["model"]


def load_teacher(path: str, recipe: str, wanted: Description) -> nn.Module:
    """The plain net of a run or a model.safetensors at `path`, for a run of `recipe` that trains what `wanted` is.

    Raises `UserError`, with how to train one, if there is none or it is of another kind.
    """
    standard = recipe.replace("arrest", "standard") if "arrest" in recipe else "…-standard"
    how = f"train one with: fastarat train {standard} --out runs/standard, then give --method.teacher runs/standard"
    if not path:
        raise UserError(f"arrest starts from a net trained on clean images: {how}")
    net, found = load_deployed(Path(path))
    for what in ("model", "num_classes", "in_channels"):
        if getattr(found, what) != getattr(wanted, what):
            name = what.replace("_", " ")
            mine, theirs = getattr(wanted, what), getattr(found, what)
            raise UserError(f"the teacher {path} has {name} {theirs}, this run {mine}: {how}")
    match = match_classes(found.classes, wanted.classes, f"the teacher {path}", "this run", how)
    if match.places.tolist() != list(range(wanted.num_classes)):
        raise UserError(f"the teacher {path} has this run's classes in another order: {how}")
    if match.how:
        notice(f"classes of the teacher: {match.how}")
    return net
