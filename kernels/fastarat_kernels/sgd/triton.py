"""SGD over flat buffers in Triton: weights, momenta, shadow weights and average in one pass and one launch.

Bytes per parameter, float32 gradients: read p, g, m (12) and write p, m (8) are 20; shadow weights add 2, the
average 8: 30 in all, in one launch. `torch._fused_sgd_` moves the same 20, in a launch for every few dozen
tensors; a cast pass beside it moves 6 (read 4, write 2) and an average pass 12 (read p, a, write a): 38. For
bf16 gradients this kernel reads 2 less, and `torch._fused_sgd_` needs a cast to float32 first (6 more): 28
against 44. The same update by `torch._foreach` operations moves 52 before any cast or average. Inductor fuses the
update, tensor by tensor, to the same 20 bytes in a launch per group of tensors. Counted, not measured on a GPU.

A skipped step (`keep` 0) reads and writes nothing; `share` 0 leaves the average unread. Pad the buffers to a
multiple of 16 elements: Triton loads 16 bytes at a time only where the length is known to divide.
"""

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastarat_kernels.launch import UnsupportedInput, launch
from fastarat_kernels.sgd.twin import check_buffers

# Sixteen elements for each of 128 threads: four 16-byte loads of every float32 buffer.
_BLOCK = 2048


@triton.jit
def _sgd(p, g, m, shadow, a, learning_rate, keep, scale, share, n, momentum, weight_decay, BLOCK: tl.constexpr):
    skip = False
    if keep is not None:
        skip = tl.load(keep) == 0
    if not skip:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < n
        old_p = tl.load(p + i, mask=inside)
        new_g = tl.load(g + i, mask=inside).to(tl.float32)
        if scale is not None:
            new_g *= tl.load(scale)
        new_m = momentum * tl.load(m + i, mask=inside) + new_g + weight_decay * old_p
        new_p = old_p - tl.load(learning_rate) * new_m
        tl.store(m + i, new_m, mask=inside)
        tl.store(p + i, new_p, mask=inside)
        if shadow is not None:
            tl.store(shadow + i, new_p.to(shadow.dtype.element_ty), mask=inside)
        if a is not None:
            weight = tl.load(share)
            if weight != 0:
                old_a = tl.load(a + i, mask=inside)
                tl.store(a + i, old_a + weight * (new_p - old_a), mask=inside)


def sgd(
    parameters: Tensor,
    gradients: Tensor,
    momenta: Tensor,
    learning_rate: Tensor,
    momentum: float,
    weight_decay: float,
    keep: Tensor | None = None,
    scale: Tensor | None = None,
    shadow: Tensor | None = None,
    average: Tensor | None = None,
    share: Tensor | None = None,
) -> None:
    """See `op.sgd`.

    Raises `UnsupportedInput` for other dtypes, empty and non-contiguous buffers, and scalars of another device.
    """
    check_buffers(parameters, share, gradients=gradients, momenta=momenta, shadow=shadow, average=average)
    half, single = (torch.bfloat16, torch.float16), (torch.float32,)
    _check("gradients", gradients, (*single, *half))
    _check("shadow", shadow, half)
    for name, buffer in {"parameters": parameters, "momenta": momenta, "average": average}.items():
        _check(name, buffer, single)
    scalars = {"learning_rate": learning_rate, "keep": keep, "scale": scale, "share": share}
    for name, scalar in scalars.items():
        _check(name, scalar, single)
        if scalar is not None and (scalar.numel() != 1 or scalar.device != parameters.device):
            raise UnsupportedInput(
                f"{name} has {scalar.numel()} elements on {scalar.device}: give one on {parameters.device}"
            )
    launch(
        _sgd,
        (-(-parameters.numel() // _BLOCK),),
        *(parameters, gradients, momenta, shadow, average, learning_rate, keep, scale, share),
        *(parameters.numel(), momentum, weight_decay),
        BLOCK=_BLOCK,
    )


def _check(name: str, x: Tensor | None, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise `UnsupportedInput` unless `x` is None, or contiguous, not empty, and of one of `dtypes`."""
    if x is None:
        return
    if x.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise UnsupportedInput(f"{name} is {x.dtype}: the kernel takes {names}")
    if not x.is_contiguous() or x.numel() == 0:
        raise UnsupportedInput(f"{name} has shape {tuple(x.shape)} and strides {x.stride()}: give a dense tensor")


def configurations() -> Iterator[tuple[str, Callable[[], object]]]:
    """Updates of ResNet-18, padded to a multiple of 16, and of WRN-34-10, not padded: (label, call on meta tensors)."""
    for name, num_parameters in {"resnet18": 11_173_968, "wrn-34-10 unpadded": 46_160_474}.items():
        for label, half in {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}.items():
            yield f"{name} {label}", lambda n=num_parameters, half=half: _sgd_on_meta(n, torch.float32, half, False)
            yield (
                f"{name} {label} average",
                lambda n=num_parameters, half=half: _sgd_on_meta(n, half or torch.float32, half, True),
            )


def _sgd_on_meta(n: int, gradient_dtype: torch.dtype, shadow_dtype: torch.dtype | None, average: bool) -> None:
    """One update on meta tensors; with loss scaling where the shadow weights are float16."""

    def empty(dtype: torch.dtype = torch.float32, size: tuple[int, ...] = (n,)) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    scaling = empty(size=()) if shadow_dtype == torch.float16 else None
    sgd(
        *(empty(), empty(gradient_dtype), empty(), empty(size=()), 0.9, 5e-4),
        keep=scaling,
        scale=scaling,
        shadow=None if shadow_dtype is None else empty(shadow_dtype),
        average=empty() if average else None,
        share=empty(size=()) if average else None,
    )
