"""The trained net that a method starts from."""

from pathlib import Path

from torch import nn

from fastarat.common.console import notice
from fastarat.common.errors import UserError
from fastarat.data.images.classes import match_classes
from fastarat.runs.deployed import load_deployed
from fastarat.runs.weights import Description


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
