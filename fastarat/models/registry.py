"""Nets by name, of the table in `config/model.py`."""

from importlib import import_module
from typing import Any

from torch import nn

from fastarat.common.errors import UserError
from fastarat.config.model import FOREIGN, MODELS, WIDE_RESNET, BatchNormKind, ModelConfig
from fastarat.models.convert import convert_to_split_batch_norm
from fastarat.models.foreign import build_foreign
from fastarat.models.split_batch_norm import PlainBatchNorm2d, SplitBatchNorm2d, connect, forward_context
from fastarat.models.wide_resnet import WideResNet


def architecture(name: str, num_classes: int, in_channels: int) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a net of ours and its arguments but for `norm`. Raises `UserError` for any other name."""
    if problems := ModelConfig(name).problems():
        raise UserError(problems[0])
    if FOREIGN.fullmatch(name):
        raise UserError(f"{name} is another package's net: give one of fastarat's, as resnet50")
    ends = {"num_classes": num_classes, "in_channels": in_channels}
    if match := WIDE_RESNET.fullmatch(name):
        depth, width = map(int, match.groups())
        return WideResNet, {**ends, "depth": depth, "width": width}
    place, arguments = MODELS[name]
    module, _, cls = place.partition(":")
    return getattr(import_module(module), cls), {**ends, **arguments}


def build_model(name: str, num_classes: int, in_channels: int = 3, batch_norm: BatchNormKind = "split") -> nn.Module:
    """A net with split batch-norms (`batch_norm`: split, shared or mixed), connected, in eval mode.

    Raises `UserError` for a name that is none, for a package that is not installed, and for a net of one without
    batch-norms where each branch is to have its own (`split`).
    """
    if FOREIGN.fullmatch(name):
        model = convert_to_split_batch_norm(build_foreign(name, num_classes, in_channels), batch_norm)
        if batch_norm == "split" and forward_context(model) is None:
            raise UserError(f"{name} has no batch-norms, of which AR-AT needs two sets: give another method's recipe")
        return model.eval()
    cls, arguments = architecture(name, num_classes, in_channels)
    model = cls(norm=lambda channels: SplitBatchNorm2d(channels, batch_norm), **arguments)
    connect(model)
    return model.eval()


def build_plain_model(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """The same net with ordinary batch-norms: what `export` writes and `eval FILE` reads. Raises `UserError` as
    `build_model` does, but needs no batch-norms."""
    if FOREIGN.fullmatch(name):
        return build_foreign(name, num_classes, in_channels).eval()
    cls, arguments = architecture(name, num_classes, in_channels)
    return cls(norm=PlainBatchNorm2d, **arguments).eval()
