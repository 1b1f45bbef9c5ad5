"""The attack step's cases of the kernel benchmark."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from fastarat_kernels.pgd_step import pgd_step, start_point, twin

from bench.kernels.cases import SEED, Draw, Inputs, KernelCase, Scale, variants_of


def cases(scale: Scale, dtype: torch.dtype) -> Iterator[KernelCase]:
    """Step and start, both norms, on CIFAR's images and on ImageNet's."""
    # A step reads iterate, gradient and centre, and writes the next iterate; a start reads images and writes points.
    kinds = (
        ("step", twin.pgd_step, pgd_step, {}, _step_inputs, 4),
        ("start", twin.start_point, start_point, {"seed": SEED}, _start_inputs, 2),
    )
    for side, norm, kind in product((8,) if scale.smoke else (32, 224), ("linf", "l2"), kinds):
        name, of_twin, ours, settings, inputs, images_moved = kind
        shape = (scale.batch, 3, side, side)
        plain = partial(of_twin, norm=norm, **settings)
        yield KernelCase(
            "pgd_step",
            f"{name} {norm} {'x'.join(map(str, shape))}",
            shape,
            dtype,
            {"forward": images_moved * torch.Size(shape).numel() * dtype.itemsize},
            partial(inputs, shape=shape, dtype=dtype, norm=norm),
            plain,
            variants_of(plain, partial(ours, norm=norm, **settings)),
            layer=side <= 32,
        )


def _radius(shape: tuple[int, ...], norm: str) -> float:
    """A ball whose points are as far, pixel by pixel, in either norm: far enough to show beside bfloat16's rounding."""
    return 0.25 if norm == "linf" else 0.15 * torch.Size(shape[1:]).numel() ** 0.5


def _step_inputs(draw: Draw, *, shape: tuple[int, ...], dtype: torch.dtype, norm: str) -> Inputs:
    centre, radius = draw.uniform(*shape), _radius(shape, norm)
    x_adv = (centre + 0.45 * (draw.uniform(*shape) - 0.5)).clamp(0, 1)
    return {
        "x_adv": x_adv.to(dtype),
        "gradient": draw.normal(*shape).to(dtype),
        "centre": centre.to(dtype),
        "step_size": draw.scalar(radius / 4),
        "eps": draw.scalar(radius),
    }


def _start_inputs(draw: Draw, *, shape: tuple[int, ...], dtype: torch.dtype, norm: str) -> Inputs:
    return {
        "x": draw.uniform(*shape).to(dtype),
        "rows": torch.arange(shape[0], device=draw.device) + 1000,
        "step": draw.scalar(7),
        "eps": draw.scalar(_radius(shape, norm)),
    }
