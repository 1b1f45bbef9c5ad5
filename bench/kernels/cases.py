"""What a kernel is measured on: a case has its shape, inputs, definition, variants and bytes.

Layer shapes are read from the nets themselves. Inputs are such that every term of a result counts: the statistics of
the halves differ, gradients have a mean, steps are large. So a wrong kernel is off by far more than rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from fastarat_kernels.registry import KERNELS
from torch import Tensor, nn

from fastarat.models.registry import architecture

Direction = Literal["forward", "backward"]
Inputs = dict[str, Tensor | None]
Function = Callable[..., Tensor]

NETS = ("resnet18", "wrn-34-10")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SEED = 1


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
        """Standard normal, float32."""
        return _laid_out(torch.randn(shape, generator=self.generator, device=self.device))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), float32."""
        return _laid_out(torch.rand(shape, generator=self.generator, device=self.device))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform below `high`, int64."""
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def scalar(self, value: float) -> Tensor:
        """One number, float32 if it is a float."""
        return torch.tensor(value, device=self.device)


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@dataclass(frozen=True)
class KernelCase:
    """One kernel on one shape. All functions take the inputs by name and return the output, y."""

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
    layer: bool = True
    """a shape of the nets, which counts in geometric means"""


def measured() -> list[str]:
    """The kernels of which a file here, by the kernel's name, has the `cases`; the most important first."""
    return [name for name in KERNELS if find_spec(f"bench.kernels.{name}")]


def cases_of(name: str, scale: Scale, dtype: torch.dtype) -> Iterator[KernelCase]:
    """All cases of a kernel."""
    return import_module(f"bench.kernels.{name}").cases(scale, dtype)


class Layer(NamedTuple):
    """A batch-norm of a net on 32 x 32 images: channels, side of the map, and what follows it."""

    channels: int
    side: int
    residual: bool
    relu: bool


class _Listening(nn.Module):
    """Stands for a batch-norm, and notes how it is called."""

    def __init__(self, _: int):
        super().__init__()
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


def variants_of(plain: Function, ours: Function) -> dict[str, Callable[[], Function]]:
    """What all kernels are compared as."""
    return {"eager": lambda: plain, "inductor": partial(compiled, plain), "triton": lambda: ours}


def name_of(dtype: torch.dtype) -> str:
    """bf16, fp16 or fp32."""
    return next(name for name, named in DTYPES.items() if named == dtype)
