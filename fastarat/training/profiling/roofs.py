"""What a device can do at best: a large matrix product and a large copy, measured in about a second."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from fastarat.common.tf32 import rounded_to_tf32

_SECONDS = 0.4


class Roofs(NamedTuple):
    """The best that a device does in one dtype. A copy counts its bytes twice, read and written."""

    flops_per_s: float
    bytes_per_s: float


def named_format(dtype: torch.dtype, device: torch.device) -> str:
    """The name of the format in which a device computes, and what of it is TF32."""
    rounded = rounded_to_tf32(device) if dtype == torch.float32 else ""
    return str(dtype).removeprefix("torch.") + (f" ({rounded} in TF32)" if rounded else "")


def measure_roofs(device: torch.device, dtype: torch.dtype) -> Roofs:
    """Measure both; leaves the random state as it was. float32 by TF32 on a GPU where convolutions may use it."""
    cuda = device.type == "cuda"
    side, size = (8192, 2**30) if cuda else (1024, 2**27)
    generator = torch.Generator(device).manual_seed(0)
    # A GPU slows down under random numbers, as under a training's, and not under constants.
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    precision = torch.get_float32_matmul_precision()
    if rounded_to_tf32(device):
        torch.set_float32_matmul_precision("high")
    try:
        product = _fastest(lambda: torch.mm(a, b, out=out), device)
    finally:
        torch.set_float32_matmul_precision(precision)
    return Roofs(2 * side**3 / product, 2 * size / _fastest(lambda: target.copy_(source), device))


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of many runs."""
    end, times = time.perf_counter() + _SECONDS, []
    while len(times) < 3 or time.perf_counter() < end:
        times.append(_on_gpu(run) if device.type == "cuda" else _on_cpu(run))
    return min(times)


def _on_cpu(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _on_gpu(run: Callable[[], object]) -> float:
    """By the device's own clock: the host's would count what a launch takes."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
