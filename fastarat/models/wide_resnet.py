"""Wide residual nets WRN-d-k (Zagoruyko and Komodakis, 2016), for 32x32 images.

Needs torch only: an exported model carries this file. `norm(channels)` builds a batch-norm that is
called as `norm(x, residual=None, relu=False)`.
"""

from collections.abc import Callable

from torch import Tensor, nn


def mean_of_pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] to the mean over each channel's pixels, [N, C]."""
    # The gradient comes back channels-last, as all others are: that of `x.mean((2, 3))` does not, and makes the ReLU
    # before it convert every element.
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


class WideBlock(nn.Module):
    """Batch-norm and ReLU before each of two 3x3 convolutions; the shortcut skips both."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.bn1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.projects = in_channels != channels
        if self.projects:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, channels, H / stride, W / stride]."""
        activated = self.bn1(x, relu=True)
        shortcut = self.convShortcut(activated) if self.projects else x
        out = self.bn2(self.conv1(activated), relu=True)
        return shortcut + self.conv2(out)


class WideStage(nn.Module):
    """One stage of blocks, under the name the published checkpoints use: `blockN.layer.i`."""

    def __init__(self, num_blocks: int, in_channels: int, channels: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        blocks = [WideBlock(in_channels, channels, stride, norm)]
        blocks += [WideBlock(channels, channels, 1, norm) for _ in range(num_blocks - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, channels, H / stride, W / stride]."""
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-`depth`-`width`. Input [N, in_channels, H, W] in [0, 1]; returns logits [N, num_classes]."""

    def __init__(self, norm: Callable[[int], nn.Module], num_classes: int, in_channels: int, depth: int, width: int):
        super().__init__()
        num_blocks = (depth - 4) // 6
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.block1 = WideStage(num_blocks, channels[0], channels[1], 1, norm)
        self.block2 = WideStage(num_blocks, channels[1], channels[2], 2, norm)
        self.block3 = WideStage(num_blocks, channels[2], channels[3], 2, norm)
        self.bn1 = norm(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)
        self.aligned_layers = (*(f"block3.layer.{i}.relu{j}" for i in range(num_blocks) for j in (1, 2)), "avgpool")
        self.pooled_layer = "avgpool"

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] in [0, 1] to logits [N, num_classes]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(mean_of_pixels(self.bn1(x, relu=True)))

    def layer_of(self, name: str) -> str:
        """The module behind a published layer name: the activations have none of their own here, and
        ReLU and pooling after a ReLU change nothing, so `relu1` is `bn1` and `avgpool` the last one."""
        return "bn1" if name == "avgpool" else name.replace(".relu", ".bn")
