"""What the kernel benchmark measures: for each kernel its shapes, inputs, definition, variants and bytes.

Layer shapes are read from the nets themselves. Inputs are such that every term of a result counts: the statistics of
the halves differ, gradients have a mean, steps are large. So a wrong kernel is off by far more than rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch
from fastarat_kernels.augment import augment
from fastarat_kernels.augment import twin as augment_twin
from fastarat_kernels.pgd_step import pgd_step, start_point
from fastarat_kernels.pgd_step import twin as pgd_twin
from fastarat_kernels.pooled_features import pooled_features
from fastarat_kernels.pooled_features import twin as pooled_twin
from torch import Tensor, nn

from fastarat.models.registry import architecture

Direction = Literal["forward", "backward"]
Inputs = dict[str, Tensor | None]
Function = Callable[..., dict[str, Tensor]]

NETS = ("resnet18", "wrn-34-10")
EPOCH, SEED = 3, 1


@dataclass(frozen=True)
class Scale:
    """Sizes: images a batch, and whether everything is tiny."""

    batch: int
    smoke: bool = False


@dataclass(frozen=True)
class Draw:
    """Random tensors on a device; images and maps are channels-last."""

    device: torch.device
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        return _laid_out(torch.randn(shape, generator=self.generator, device=self.device))

    def uniform(self, *shape: int) -> Tensor:
        return _laid_out(torch.rand(shape, generator=self.generator, device=self.device))

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def scalar(self, value: float) -> Tensor:
        return torch.tensor(value, device=self.device)


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@dataclass(frozen=True)
class Case:
    """One kernel on one shape. All functions take the inputs by name and return outputs by name."""

    kernel: str
    label: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    num_bytes: Mapping[Direction, int]
    """what is counted as read and written, the same for all variants; its keys are what is measured"""
    inputs: Callable[[Draw], Inputs]
    """inputs that require gradients are those whose gradients are compared and timed"""
    definition: Function
    """the twin, for inputs in float64"""
    variants: Mapping[str, Callable[[], Function]]
    """each builds the function, which may take long (compilation) or raise"""
    least_bytes: Mapping[Direction, int] = field(default_factory=dict)
    """what has to move at least, where that is more than is counted"""
    in_place: bool = False
    layer: bool = True
    """a shape of the nets, which counts in geometric means"""


class Layer(NamedTuple):
    """A batch-norm of a net on 32 x 32 images: channels, side of the map, and what follows it."""

    channels: int
    side: int
    residual: bool
    relu: bool


class _Listening(nn.Module):
    """Stands for a batch-norm, has its parameters, and notes how it is called."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.heard: Layer | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        self.heard = Layer(x.shape[1], x.shape[3], residual is not None, relu)
        return x


@cache
def nets() -> tuple[nn.Module, ...]:
    """ResNet-18 and WRN-34-10 without memory, after a forward pass of 32 x 32 images in which batch-norms listened."""
    found = []
    for name in NETS:
        kind, arguments = architecture(name, num_classes=10, in_channels=3)
        with torch.device("meta"):
            net = kind(norm=_Listening, **arguments)
            net(torch.empty(1, 3, 32, 32))
        found.append(net)
    return tuple(found)


def layers_of(scale: Scale) -> list[Layer]:
    """Every distinct batch-norm of the nets, in order."""
    if scale.smoke:
        return [Layer(16, 4, True, True), Layer(16, 4, False, True)]
    heard = [module.heard for net in nets() for module in net.modules() if isinstance(module, _Listening)]
    return list(dict.fromkeys(layer for layer in heard if layer is not None))


def aligned_maps(scale: Scale) -> list[tuple[int, int]]:
    """(channels, side) of the layers of which AR-AT takes features, distinct, in order."""
    if scale.smoke:
        return [(16, 4)]
    found = []
    for net in nets():
        layer_of: Callable[[str], str] = getattr(net, "layer_of", str)
        for name in net.aligned_layers:  # pyright: ignore[reportGeneralTypeIssues]
            module = net.get_submodule(layer_of(name))
            assert isinstance(module, _Listening) and module.heard is not None
            found.append(module.heard[:2])
    return list(dict.fromkeys(found))


def compiled(function: Function) -> Function:
    """`function` as inductor compiles it, for its own shapes."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def installed(module: str, name: str) -> Any:
    """A class of NVIDIA apex, or None where apex, or that part of it, is not installed."""
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return None


def variants_of(plain: Function, ours: Function) -> dict[str, Callable[[], Function]]:
    """What all kernels are compared as."""
    return {"eager": lambda: plain, "inductor": partial(compiled, plain), "triton": lambda: ours}


def name_of(dtype: torch.dtype) -> str:
    """bf16, fp16 or fp32."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


# pgd_step


def pgd_cases(scale: Scale, dtype: torch.dtype) -> Iterator[Case]:
    """Step and start, both norms, on CIFAR's images and on ImageNet's."""
    sides = (8,) if scale.smoke else (32, 224)
    for side in sides:
        shape = (scale.batch, 3, side, side)
        image_bytes = torch.Size(shape).numel() * dtype.itemsize
        for norm in ("linf", "l2"):
            label = f"{norm} {'x'.join(map(str, shape))}"
            step = partial(_named, pgd_twin.pgd_step, norm=norm)
            yield Case(
                "pgd_step",
                f"step {label}",
                shape,
                dtype,
                {"forward": 4 * image_bytes},  # reads iterate, gradient and centre, writes the next iterate
                partial(_step_inputs, shape, dtype, norm),
                step,
                variants_of(step, partial(_named, pgd_step, norm=norm)),
                layer=side <= 32,
            )
            start = partial(_named, pgd_twin.start_point, seed=SEED, norm=norm)
            yield Case(
                "pgd_step",
                f"start {label}",
                shape,
                dtype,
                {"forward": 2 * image_bytes},  # reads the images, writes the start
                partial(_start_inputs, shape, dtype, norm),
                start,
                variants_of(start, partial(_named, start_point, seed=SEED, norm=norm)),
                layer=side <= 32,
            )


def _named(function: Callable[..., Tensor], **inputs: Any) -> dict[str, Tensor]:
    """The one output of a function, by name."""
    return {"y": function(**inputs)}


def _radius(shape: tuple[int, ...], norm: str) -> float:
    """A ball whose points are as far, pixel by pixel, in either norm: far enough to show beside bfloat16's rounding."""
    return 0.25 if norm == "linf" else 0.15 * torch.Size(shape[1:]).numel() ** 0.5


def _step_inputs(shape: tuple[int, ...], dtype: torch.dtype, norm: str, draw: Draw) -> Inputs:
    centre, radius = draw.uniform(*shape), _radius(shape, norm)
    x_adv = (centre + 0.45 * (draw.uniform(*shape) - 0.5)).clamp(0, 1)
    return {
        "x_adv": x_adv.to(dtype),
        "gradient": draw.normal(*shape).to(dtype),
        "centre": centre.to(dtype),
        "step_size": draw.scalar(radius / 4),
        "eps": draw.scalar(radius),
    }


def _start_inputs(shape: tuple[int, ...], dtype: torch.dtype, norm: str, draw: Draw) -> Inputs:
    return {
        "x": draw.uniform(*shape).to(dtype),
        "rows": torch.arange(shape[0], device=draw.device) + 1000,
        "step": draw.scalar(7),
        "eps": draw.scalar(_radius(shape, norm)),
    }


# augment


def augment_cases(scale: Scale, dtype: torch.dtype) -> Iterator[Case]:
    """Crop and flip of a batch and of up to eight, out of a set of 10,000 images (smoke: 20)."""
    num_images, side = (20, 8) if scale.smoke else (10_000, 32)
    for factor in (1,) if scale.smoke else (1, 2, 4, 8):
        shape = (factor * scale.batch, 3, side, side)
        plain = partial(_plain_augment, dtype=dtype)
        yield Case(
            "augment",
            "x".join(map(str, shape)),
            shape,
            dtype,
            {"forward": torch.Size(shape).numel() * (1 + dtype.itemsize)},  # reads bytes, writes `dtype`
            partial(_augment_inputs, num_images, shape),
            partial(_plain_augment, dtype=torch.float64),
            variants_of(plain, partial(_fused_augment, dtype=dtype)),
        )


def _plain_augment(images: Tensor, index: Tensor, epoch: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    # The epoch is a tensor: the copy of a Python number to the GPU could not be captured.
    return {"y": augment_twin.augment(images, index, epoch, 255, dtype, 4, True, SEED)}  # type: ignore[arg-type]


def _fused_augment(images: Tensor, index: Tensor, epoch: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"y": augment(images, index, EPOCH, 255, dtype, 4, True, SEED)}


def _augment_inputs(num_images: int, shape: tuple[int, ...], draw: Draw) -> Inputs:
    images = draw.integers(256, num_images, shape[2], shape[3], shape[1]).to(torch.uint8)
    return {"images": images, "index": draw.integers(num_images, shape[0]), "epoch": draw.scalar(EPOCH)}


# pooled_features


def pooled_cases(scale: Scale, dtype: torch.dtype) -> Iterator[Case]:
    """The maps of the aligned layers, of both halves."""
    for channels, side in aligned_maps(scale):
        shape = (2 * scale.batch, channels, side, side)
        map_bytes, feature_bytes = torch.Size(shape).numel() * dtype.itemsize, 4 * shape[0] * channels
        yield Case(
            "pooled_features",
            f"{channels}x{side}x{side}",
            shape,
            dtype,
            # reads the map and writes features; then reads the map and their gradient, and writes the map's
            {"forward": map_bytes + feature_bytes, "backward": 2 * map_bytes + feature_bytes},
            partial(_pooled_inputs, shape, dtype),
            partial(_named, pooled_twin.pooled_features),
            variants_of(partial(_named, pooled_twin.pooled_features), partial(_named, pooled_features)),
        )


def _pooled_inputs(shape: tuple[int, ...], dtype: torch.dtype, draw: Draw) -> Inputs:
    return {"z": (draw.normal(*shape) + 0.3).to(dtype).requires_grad_()}
