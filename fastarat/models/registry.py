"""Nets by name: one line each."""

from typing import Any

from torch import nn

from fastarat.errors import UserError
from fastarat.models.resnet import ResNet
from fastarat.models.settings import WIDE_RESNET, BatchNormKind, ModelConfig
from fastarat.models.split_batch_norm import PlainBatchNorm2d, SplitBatchNorm2d, connect
from fastarat.models.wide_resnet import WideResNet

RESNETS = {
    "digits": {"widths": (32, 64), "strides": (1, 2), "num_blocks": 1},
    "tiny": {"widths": (16, 32, 64), "strides": (2, 2, 2), "num_blocks": 1},
    "resnet18": {"widths": (64, 128, 256, 512), "strides": (1, 2, 2, 2), "num_blocks": 2},
}


def architecture(name: str, num_classes: int, in_channels: int) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a net and its arguments but for `norm`. Raises `UserError` for an unknown name."""
    problems = ModelConfig(name).problems()
    if problems:
        raise UserError(problems[0])
    ends = {"num_classes": num_classes, "in_channels": in_channels}
    match = WIDE_RESNET.fullmatch(name)
    if match:
        depth, width = map(int, match.groups())
        return WideResNet, {**ends, "depth": depth, "width": width}
    return ResNet, {**ends, **RESNETS[name]}


def build_model(name: str, num_classes: int, in_channels: int = 3, batch_norm: BatchNormKind = "split") -> nn.Module:
    """A net with split batch-norms (`batch_norm`: split, shared or mixed), connected, in eval mode."""
    cls, arguments = architecture(name, num_classes, in_channels)
    model = cls(norm=lambda channels: SplitBatchNorm2d(channels, batch_norm), **arguments)
    connect(model)
    return model.eval()


def build_plain_model(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """The same net with ordinary batch-norms: what `export` writes and `eval FILE` reads."""
    cls, arguments = architecture(name, num_classes, in_channels)
    return cls(norm=PlainBatchNorm2d, **arguments).eval()
