"""ResNets (He et al., 2016): the CIFAR form for small images (3x3 stem, no max-pooling), and the ImageNet form.

Needs torch only: an exported model carries this file. `norm(channels)` builds a batch-norm that is
called as `norm(x, residual=None, relu=False)`.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias: [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def mean_of_pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] to the mean over each channel's pixels, [N, C]."""
    # The gradient comes back channels-last, as all others are: that of `x.mean((2, 3))` does not, and makes the ReLU
    # before it convert every element.
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    expansion = 1
    num_norms = 2

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
        """[N, in_channels, H, W] to [N, expansion * channels, H / stride, W / stride]."""
        shortcut = self.shortcut_bn(self.shortcut(x)) if self.projects else x
        out = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(out), residual=shortcut, relu=True)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, the last four times as wide, and a shortcut as in `BasicBlock`.

    The stride is the 3x3 convolution's ("v1.5"), so that none of its input goes unread.
    """

    expansion = 4
    num_norms = 3

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.projects = stride != 1 or in_channels != out_channels
        if self.projects:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut_bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, expansion * channels, H / stride, W / stride]."""
        shortcut = self.shortcut_bn(self.shortcut(x)) if self.projects else x
        out = self.bn1(self.conv1(x), relu=True)
        out = self.bn2(self.conv2(out), relu=True)
        return self.bn3(self.conv3(out), residual=shortcut, relu=True)


class ResNet(nn.Module):
    """A stem, stages `layer1`, `layer2`, … with `num_blocks` blocks each, average pooling, `linear`.

    `bottleneck`: of such blocks, else basic ones. `large_images`: the ImageNet form, whose stem (7x7 convolution and
    max-pooling, each of stride 2) leaves a quarter of each side. Input [N, in_channels, H, W] in [0, 1]; returns logits
    [N, num_classes]. The aligned layers are the last stage's batch-norms but for the shortcuts': AR-AT's of ResNet-18,
    and the same rule for bottlenecks, of which its paper has none.
    """

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        num_classes: int,
        in_channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        num_blocks: Sequence[int],
        bottleneck: bool = False,
        large_images: bool = False,
    ):
        super().__init__()
        block = Bottleneck if bottleneck else BasicBlock
        channels = widths[0]
        if large_images:
            self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, padding=3, bias=False)
        else:
            self.conv1 = conv3x3(in_channels, channels)
        self.bn1 = norm(channels)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large_images else nn.Identity()
        self.num_stages = len(widths)
        for i, (width, stride, num) in enumerate(zip(widths, strides, num_blocks, strict=True), start=1):
            blocks = []
            for j in range(num):
                blocks.append(block(channels, width, stride if j == 0 else 1, norm))
                channels = block.expansion * width
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, num_classes)
        self.pooled_layer = f"layer{self.num_stages}"  # the one before pooling and `linear`
        self.aligned_layers = tuple(
            f"{self.pooled_layer}.{j}.bn{k + 1}" for j in range(num_blocks[-1]) for k in range(block.num_norms)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] in [0, 1] to logits [N, num_classes]."""
        x = self.pool(self.bn1(self.conv1(x), relu=True))
        for i in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.linear(mean_of_pixels(x))
