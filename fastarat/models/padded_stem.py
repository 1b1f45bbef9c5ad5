"""A first convolution that computes on more channels than images have: the same function of the same weights."""

import torch.nn.functional as F
from torch import Tensor, nn


class PaddedStem(nn.Conv2d):
    """A convolution that takes zeros for the channels from `in_channels` to `num_channels`, in images and in weights.

    Tensor cores want channels by the eight, and images have three. The zeros are written in the forward pass, on the
    way to the format that it computes in, and their gradients are cut off in the backward pass: attacks, parameters,
    checkpoints and exports know nothing of them.
    """

    num_channels: int

    def forward(self, input: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, …], as the convolution that it was."""
        more = (0, 0, 0, 0, 0, self.num_channels - self.in_channels)
        x, weight = F.pad(input, more), F.pad(self.weight, more)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)


def pad_stem(net: nn.Module, num_channels: int) -> bool:
    """Let the first convolution of `net` compute on `num_channels` channels, in place, and say whether it does now.

    It stays as it is where it takes as many, has groups or another border than zeros, or is of a class of its own.
    """
    stem = next((layer for layer in net.modules() if isinstance(layer, nn.Conv2d)), None)
    is_plain = type(stem) is nn.Conv2d and (stem.groups, stem.padding_mode) == (1, "zeros")
    if stem is None or not is_plain or stem.in_channels >= num_channels:
        return False
    stem.__class__ = PaddedStem
    stem.num_channels = num_channels  # type: ignore[assignment]
    return True


def unpad_stem(net: nn.Module) -> None:
    """Let the first convolution of `net` compute on the channels of the images again, in place."""
    for layer in net.modules():
        if type(layer) is PaddedStem:
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]
            del layer.num_channels
