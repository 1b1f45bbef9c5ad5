"""ResNets for small images (He et al., 2016; the CIFAR form: 3x3 stem, no max-pooling).

Needs torch only: an exported model carries this file. `norm(channels)` builds a batch-norm that is
called as `norm(x, residual=None, relu=False)`.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = norm(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = norm(channels)
        self.projects = stride != 1 or in_channels != channels
        if self.projects:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut_bn = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut_bn(self.shortcut(x)) if self.projects else x
        out = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(out), residual=shortcut, relu=True)


class ResNet(nn.Module):
    """A stem, stages `layer1`, `layer2`, … of `num_blocks` blocks each, average pooling, `linear`.

    Input [N, in_channels, H, W] in [0, 1]; returns logits [N, num_classes].
    """

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        num_classes: int,
        in_channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        num_blocks: int,
    ):
        super().__init__()
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = norm(widths[0])
        self.num_stages = len(widths)
        channels = widths[0]
        for i, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
            blocks = []
            for j in range(num_blocks):
                blocks.append(BasicBlock(channels, width, stride if j == 0 else 1, norm))
                channels = width
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, num_classes)
        self.aligned_layers = tuple(f"layer{self.num_stages}.{j}.bn{k}" for j in range(num_blocks) for k in (1, 2))
        self.pooled_layer = f"layer{self.num_stages}"  # the one before pooling and `linear`

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x), relu=True)
        for i in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.linear(x.mean((2, 3)))
