"""How kernels are started: for real, or recorded, so that the ahead-of-time gate compiles what really runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_GRID_Y = 65535


class UnsupportedInput(ValueError):
    """A kernel was given a dtype, layout or shape that it does not take; says which it takes."""


@dataclass(frozen=True)
class Launch:
    """One start of a Triton kernel: the jit function, its grid, its arguments in order, its constexprs."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Tensor | int | float | None, ...]
    constants: dict[str, Any]
    num_warps: int


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Tensor | int | float | None, num_warps: int = 4, **constants: Any
) -> None:
    """Start `kernel` on `grid` with `arguments`, then the constexprs by name; only note it while `recording`.

    Raises `UnsupportedInput` for tensors of several devices.
    """
    record = _recorded.get()
    if record is not None:
        record.append(Launch(kernel, grid, arguments, constants, num_warps))
        return
    devices = {argument.device for argument in arguments if isinstance(argument, Tensor)}
    if len(devices) != 1:
        names = ", ".join(sorted(map(str, devices)))
        raise UnsupportedInput(f"tensors lie on {names}: a kernel takes those of one device")
    (device,) = devices
    # Triton starts kernels on the current device, wherever the tensors are.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, num_warps=num_warps, **constants)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of starting them: tensors may be of the meta device."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def triton_errors() -> tuple[type[Exception], ...]:
    """What Triton raises when it compiles or loads a kernel; nothing where Triton was never used."""
    if "triton" not in sys.modules:
        return ()
    from triton.errors import TritonError

    return (TritonError,)


def is_of_triton(error: Exception) -> bool:
    """Whether Triton raised it: one of `triton_errors`, or what its launcher says of the driver."""
    return isinstance(error, triton_errors()) or "Triton Error" in str(error)


def check_rows(x: Tensor, name: str = "x") -> None:
    """Raise `UnsupportedInput` unless `x` is [N, C] or channels-last [N, C, H, W], dense, in a kernel's dtype."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnsupportedInput(f"{name} is {x.dtype}: kernels take float32, bfloat16 and float16; use kernels=pytorch")
    if x.dim() not in (2, 4):
        raise UnsupportedInput(f"{name} has shape {tuple(x.shape)}: kernels take [N, C] and [N, C, H, W]")
    dense = x.is_contiguous() if x.dim() == 2 else x.is_contiguous(memory_format=torch.channels_last)
    if not dense:
        raise UnsupportedInput(
            f"{name} of shape {tuple(x.shape)} has strides {x.stride()}: kernels take channels-last tensors; "
            "give x.contiguous(memory_format=torch.channels_last)"
        )
    if x.numel() == 0:
        raise UnsupportedInput(f"{name} has shape {tuple(x.shape)}: it is empty")
