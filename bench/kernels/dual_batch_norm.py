"""The batch-norm's cases of the kernel benchmark."""

from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from fastarat_kernels.dual_batch_norm import dual_batch_norm, twin
from torch import Tensor

from bench.kernels.cases import (
    Direction,
    Draw,
    Function,
    Inputs,
    KernelCase,
    Layer,
    Scale,
    layers_of,
    variants_of,
)

LARGE_BYTES = 256 * 10**6
"""from here on a tensor is far larger than any cache, and the share of copy bandwidth is judged"""
EPS = 1e-5


@cache
def apex_batch_norm() -> Any:
    """apex's NHWC batch-norm, or None where apex, or that part of it, is not installed."""
    try:
        return import_module("apex.contrib.groupbn.batch_norm").BatchNorm2d_NHWC
    except (ImportError, AttributeError):
        return None


def cases(scale: Scale, dtype: torch.dtype) -> Iterator[KernelCase]:
    """Two maps of 256 MB and more, then each layer in training (both halves) and in the attack (one, frozen net)."""
    images = 8 if scale.smoke else 2048 // dtype.itemsize
    channels, side = (16, 4) if scale.smoke else (160, 32)
    for residual in (False, True):
        yield _batch_norm(Layer(channels, side, residual, True), images, 2, dtype=dtype, label="large", in_net=False)
    for layer in layers_of(scale):
        yield _batch_norm(layer, 2 * scale.batch, 2, dtype=dtype, label="train")
        yield _batch_norm(layer, scale.batch, 1, dtype=dtype, label="attack")


def _batch_norm(
    layer: Layer, images: int, groups: int, *, dtype: torch.dtype, label: str, in_net: bool = True
) -> KernelCase:
    shape = (images, layer.channels, layer.side, layer.side)
    map_bytes = torch.Size(shape).numel() * dtype.itemsize
    settings = {"groups": groups, "relu": layer.relu}
    variants = variants_of(partial(_plain, **settings), partial(_fused, **settings))
    # apex: half precision is fp16 only, and a residual comes with a ReLU.
    if apex_batch_norm() and dtype == torch.float16 and (layer.relu or not layer.residual):
        variants["apex"] = partial(_apex_batch_norm, layer.channels, groups, layer.relu)
    extras = " residual" * layer.residual + " relu" * layer.relu
    # For all layers alike: forward x twice (statistics, then the result) and y, backward x and dy twice (sums, then the
    # result) and dx.
    counted: dict[Direction, int] = {"forward": 3 * map_bytes, "backward": 5 * map_bytes}
    return KernelCase(
        "dual_batch_norm",
        f"{label} {layer.channels}x{layer.side}x{layer.side}{extras}",
        shape,
        dtype,
        counted,
        partial(_batch_norm_inputs, layer=layer, shape=shape, groups=groups, dtype=dtype, train=label != "attack"),
        partial(_definition, **settings),
        variants,
        # A residual is read once, and has a gradient to be written.
        {direction: count + layer.residual * map_bytes for direction, count in counted.items()},
        layer=in_net,
    )


def _plain(x: Tensor, weight: Tensor, bias: Tensor, *, residual: Tensor | None, groups: int, relu: bool) -> Tensor:
    """As a user of PyTorch writes it: each half by itself. Running statistics, 2 C numbers, no variant has."""
    halves = [
        F.batch_norm(half, None, None, weight[i], bias[i], True, eps=EPS) for i, half in enumerate(x.chunk(groups))
    ]
    y = torch.cat(halves) if groups > 1 else halves[0]
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def _fused(**inputs: Any) -> Tensor:
    return dual_batch_norm(**inputs, eps=EPS)[0]


def _definition(**inputs: Any) -> Tensor:
    return twin.batch_norm(**inputs, eps=EPS)[0]


def _apex_batch_norm(channels: int, groups: int, relu: bool) -> Function:
    """apex's NHWC batch-norm, one of them a half; the tensors that it sees are [N, H, W, C]."""
    norms = [apex_batch_norm()(channels, fuse_relu=relu).cuda() for _ in range(groups)]

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        residuals = [None] * groups if residual is None else residual.permute(0, 2, 3, 1).chunk(groups)
        halves = [
            torch.func.functional_call(norm, {"weight": weight[i], "bias": bias[i]}, (half, residuals[i]))
            for i, (norm, half) in enumerate(zip(norms, x.permute(0, 2, 3, 1).chunk(groups), strict=True))
        ]
        return (torch.cat(halves) if groups > 1 else halves[0]).permute(0, 3, 1, 2)

    return run


def _batch_norm_inputs(
    draw: Draw, *, layer: Layer, shape: tuple[int, ...], groups: int, dtype: torch.dtype, train: bool
) -> Inputs:
    """x, weight and bias [groups, C] float32 (with gradients in training), and a residual or None."""
    weight, bias = draw.uniform(groups, layer.channels) + 0.5, draw.normal(groups, layer.channels)
    x = torch.cat([half * (1 + i) + i for i, half in enumerate(draw.normal(*shape).chunk(groups))])
    residual = draw.normal(*shape).to(dtype) if layer.residual else None
    if layer.relu:
        x = _off_the_kink(
            x, weight, bias, residual=residual, groups=groups, margin=max(4 * torch.finfo(dtype).eps, 1e-4)
        )
    inputs = {"x": x.to(dtype), "weight": weight, "bias": bias, "residual": residual}
    frozen = () if train else ("weight", "bias")
    return {
        name: value if value is None else value.requires_grad_(name not in frozen) for name, value in inputs.items()
    }


def _off_the_kink(
    x: Tensor, weight: Tensor, bias: Tensor, *, residual: Tensor | None, groups: int, margin: float
) -> Tensor:
    """x moved so that nothing that a ReLU sees is within rounding of 0.

    There variants may rightly differ, and by a whole gradient: in bfloat16 one element in some hundred would, and in
    float32 enough of them to hide other errors, since statistics of 10^5 rows are off by far more than a unit.
    """
    added = torch.zeros((), device=x.device) if residual is None else residual.double()
    normed, statistics = twin.batch_norm(x.double(), weight.double(), bias.double(), None, False, groups, EPS)
    value, margins = normed + added, margin * (1 + normed.abs() + added.abs())
    slope = (weight * torch.rsqrt(statistics[1] + EPS)).repeat_interleave(len(x) // groups, 0)[:, :, None, None]
    shift = torch.where(value < 0, -margins, margins) / slope
    return torch.where(value.abs() < margins, x + shift, x).float().contiguous(memory_format=torch.channels_last)
