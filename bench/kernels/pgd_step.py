"""The attack step's cases of the kernel benchmark."""

from collections.abc import Iterator
from functools import partial

import torch
from fastarat_kernels.pgd_step import pgd_step, start_point, twin

from bench.kernels.cases import SEED, Case, Draw, Inputs, Scale, named, variants_of


def cases(scale: Scale, dtype: torch.dtype) -> Iterator[Case]:
    """Step and start, both norms, on CIFAR's images and on ImageNet's."""
    sides = (8,) if scale.smoke else (32, 224)
    for side in sides:
        shape = (scale.batch, 3, side, side)
        image_bytes = torch.Size(shape).numel() * dtype.itemsize
        for norm in ("linf", "l2"):
            label = f"{norm} {'x'.join(map(str, shape))}"
            step = partial(named, twin.pgd_step, norm=norm)
            yield Case(
                "pgd_step",
                f"step {label}",
                shape,
                dtype,
                {"forward": 4 * image_bytes},  # reads iterate, gradient and centre, writes the next iterate
                partial(_step_inputs, shape, dtype, norm),
                step,
                variants_of(step, partial(named, pgd_step, norm=norm)),
                layer=side <= 32,
            )
            start = partial(named, twin.start_point, seed=SEED, norm=norm)
            yield Case(
                "pgd_step",
                f"start {label}",
                shape,
                dtype,
                {"forward": 2 * image_bytes},  # reads the images, writes the start
                partial(_start_inputs, shape, dtype, norm),
                start,
                variants_of(start, partial(named, start_point, seed=SEED, norm=norm)),
                layer=side <= 32,
            )


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
