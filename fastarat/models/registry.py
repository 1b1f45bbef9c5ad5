"""Nets by name: one line each."""

from collections.abc import Callable

from torch import nn

from fastarat.errors import UserError
from fastarat.models.resnet import ResNet
from fastarat.models.settings import WIDE_RESNET, BatchNormKind, ModelConfig
from fastarat.models.split_batch_norm import PlainBatchNorm2d, SplitBatchNorm2d, connect
from fastarat.models.wide_resnet import WideResNet

Norm = Callable[[int], nn.Module]

RESNETS = {
    "digits": {"widths": (32, 64), "strides": (1, 2), "num_blocks": 1},
    "tiny": {"widths": (16, 32, 64), "strides": (2, 2, 2), "num_blocks": 1},
    "resnet18": {"widths": (64, 128, 256, 512), "strides": (1, 2, 2, 2), "num_blocks": 2},
}


def _construct(name: str, norm: Norm, num_classes: int, in_channels: int) -> nn.Module:
    problems = ModelConfig(name).problems()
    if problems:
        raise UserError(problems[0])
    match = WIDE_RESNET.fullmatch(name)
    if match:
        depth, width = map(int, match.groups())
        return WideResNet(norm, num_classes, in_channels, depth, width)
    return ResNet(norm, num_classes, in_channels, **RESNETS[name])


def build_model(name: str, num_classes: int, in_channels: int = 3, batch_norm: BatchNormKind = "split") -> nn.Module:
    """A net with split batch-norms (`batch_norm`: split, shared or mixed), connected, in eval mode."""
    model = _construct(name, lambda channels: SplitBatchNorm2d(channels, batch_norm), num_classes, in_channels)
    connect(model)
    return model.eval()


def build_plain_model(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """The same net with ordinary batch-norms: what `export` writes and `eval FILE` reads."""
    return _construct(name, PlainBatchNorm2d, num_classes, in_channels).eval()
