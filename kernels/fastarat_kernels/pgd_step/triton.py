"""The PGD step and the random start as one Triton kernel each.

Images of one layout, contiguous or channels-last, are N runs of C*H*W numbers, so that a step looks at no indices.
Reasoned, not measured; an image tensor of 128 x 3 x 32 x 32 in float32 is 1.6 MB:

- Linf step: 3 reads and 1 write of a tensor, 1 launch. Eager PyTorch: 11 reads and 8 writes, 8 launches. Inductor
  fuses them as well: the same bytes and launches, wherever the step lies in one compiled graph.
- L2 step: 1 launch, one program an image, whose later readings of its image (12 KB) hit the cache: 3 reads and 1 write
  of memory. Eager: 17 launches; inductor about 4, a reduction ending each but the last.
- start: 1 read and 1 write, 1 launch. Eager: 231 launches (L2: 468) over int64 tensors of the batch's size; inductor
  fuses the rounds (L2: about 3 launches). The norm's numbers are drawn twice, not kept.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastarat_kernels.launch import UnsupportedInput, launch
from fastarat_kernels.philox import Stream
from fastarat_kernels.philox.triton import normal, uniform
from fastarat_kernels.philox.twin import signed

BLOCK = 1024
BLOCK_L2 = 4096  # a CIFAR image at once; half of it spills 8 bytes on sm_90, where ptxas then wants 32 registers

ATTACK_START = tl.constexpr(int(Stream.ATTACK_START))
ATTACK_RADIUS = tl.constexpr(int(Stream.ATTACK_RADIUS))


@triton.jit
def _cut(x, low, high):
    # As torch.maximum, minimum and clamp: a NaN stays one.
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _linf_step_kernel(
    x_ptr, gradient_ptr, centre_ptr, step_size_ptr, eps_ptr, out_ptr, num_elements, BLOCK: tl.constexpr
):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < num_elements
    x = tl.load(x_ptr + element, mask=mask, other=0).to(tl.float32)
    gradient = tl.load(gradient_ptr + element, mask=mask, other=0).to(tl.float32)
    centre = tl.load(centre_ptr + element, mask=mask, other=0).to(tl.float32)
    step_size, eps = tl.load(step_size_ptr).to(tl.float32), tl.load(eps_ptr).to(tl.float32)
    # As torch.sign: a NaN has sign 0.
    sign = (gradient > 0).to(tl.float32) - (gradient < 0).to(tl.float32)
    x = _cut(_cut(x + step_size * sign, centre - eps, centre + eps), 0.0, 1.0)
    tl.store(out_ptr + element, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _finite(gradient, largest):
    # As twin.finite_gradient.
    return tl.minimum(tl.maximum(tl.where(gradient == gradient, gradient, 0.0), -largest), largest)


@triton.jit
def _l2_step_kernel(x_ptr, gradient_ptr, centre_ptr, step_size_ptr, eps_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """One image of `size` numbers: its largest finite |g|, ‖g‖, the shift's norm, then the projected point."""
    image = tl.program_id(0).to(tl.int64) * size
    x_ptr, gradient_ptr, centre_ptr, out_ptr = x_ptr + image, gradient_ptr + image, centre_ptr + image, out_ptr + image
    step_size, eps = tl.load(step_size_ptr).to(tl.float32), tl.load(eps_ptr).to(tl.float32)
    column = tl.arange(0, BLOCK)

    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        gradient = tl.load(gradient_ptr + start + column, mask=start + column < size, other=0).to(tl.float32)
        gradient = tl.abs(gradient)
        largest = tl.maximum(largest, tl.where(gradient <= 3.4028234663852886e38, gradient, 0.0))
    most = tl.max(largest, 0)
    most = tl.where(most == 0, 1.0, most)
    # Its rounding is common to the image's numbers, whose norm it leaves again.
    scale = tl.div_rn(1.0, tl.maximum(most, 1.1754943508222875e-38))

    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        gradient = tl.load(gradient_ptr + start + column, mask=start + column < size, other=0).to(tl.float32)
        gradient = _finite(gradient, most)
        squares += (gradient * scale) * (gradient * scale)
    length = tl.maximum(tl.sqrt_rn(tl.sum(squares, 0)), 1e-12)
    step_size = tl.div_rn(step_size, length)

    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        mask = start + column < size
        x = tl.load(x_ptr + start + column, mask=mask, other=0).to(tl.float32)
        gradient = tl.load(gradient_ptr + start + column, mask=mask, other=0).to(tl.float32)
        centre = tl.load(centre_ptr + start + column, mask=mask, other=0).to(tl.float32)
        shift = x + step_size * (_finite(gradient, most) * scale) - centre
        squares += shift * shift
    length = tl.maximum(tl.sqrt_rn(tl.sum(squares, 0)), 1e-12, propagate_nan=tl.PropagateNan.ALL)
    shrink = tl.minimum(tl.div_rn(eps, length), 1.0, propagate_nan=tl.PropagateNan.ALL)

    for start in range(0, size, BLOCK):
        mask = start + column < size
        x = tl.load(x_ptr + start + column, mask=mask, other=0).to(tl.float32)
        gradient = tl.load(gradient_ptr + start + column, mask=mask, other=0).to(tl.float32)
        centre = tl.load(centre_ptr + start + column, mask=mask, other=0).to(tl.float32)
        shift = x + step_size * (_finite(gradient, most) * scale) - centre
        x = _cut(centre + shift * shrink, 0.0, 1.0)
        tl.store(out_ptr + start + column, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _logical(place, size, CHANNELS: tl.constexpr):
    """The NCHW index, within an image, of the number at `place` of its channels-last memory; CHANNELS 1: the same."""
    return place % CHANNELS * (size // CHANNELS) + place // CHANNELS


@triton.jit
def _store_start(x_ptr, out_ptr, place, mask, noise):
    x = tl.load(x_ptr + place, mask=mask, other=0)
    # Rounded to the images' dtype before the sum, as the twin does.
    tl.store(out_ptr + place, (x.to(tl.float32) + noise.to(x.dtype).to(tl.float32)).to(x.dtype), mask=mask)


@triton.jit(do_not_specialize=["seed"])
def _linf_start_kernel(
    x_ptr, rows_ptr, step_ptr, eps_ptr, out_ptr, size, seed, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    image = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row, step, eps = tl.load(rows_ptr + image), tl.load(step_ptr), tl.load(eps_ptr).to(tl.float32)
    u = uniform(_logical(place, size, CHANNELS), row, step, ATTACK_START, seed)
    _store_start(x_ptr + image * size, out_ptr + image * size, place, place < size, eps * (2 * u - 1))


@triton.jit(do_not_specialize=["seed"])
def _l2_start_kernel(
    x_ptr, rows_ptr, step_ptr, eps_ptr, out_ptr, size, seed, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    image = tl.program_id(0).to(tl.int64)
    row, step, eps = tl.load(rows_ptr + image), tl.load(step_ptr), tl.load(eps_ptr).to(tl.float32)
    column = tl.arange(0, BLOCK)

    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):  # in the order of the elements: the norm is the same for both layouts
        z = normal(start + column, size, row, step, ATTACK_START, seed)
        squares += tl.where(start + column < size, z * z, 0)
    length = tl.maximum(tl.sqrt_rn(tl.sum(squares, 0)), 1e-12)
    radius = tl.exp2(tl.div_rn(tl.log2(uniform(tl.zeros([1], tl.int32), row, step, ATTACK_RADIUS, seed)), size * 1.0))
    scale = tl.div_rn(eps * radius, length)

    for start in range(0, size, BLOCK):
        place = start + column
        z = normal(_logical(place, size, CHANNELS), size, row, step, ATTACK_START, seed)
        _store_start(x_ptr + image * size, out_ptr + image * size, place, place < size, scale * z)


def pgd_step(x_adv: Tensor, gradient: Tensor, centre: Tensor, step_size: Tensor, eps: Tensor, norm: str) -> Tensor:
    """See `op.pgd_step`; a gradient of another layout is copied into that of `x_adv` first (one launch more).

    Raises `UnsupportedInput` for other dtypes, for images of no dense layout and a centre of another than `x_adv`.
    """
    layout = _layout(x_adv, "x_adv")
    if not centre.is_contiguous(memory_format=layout):
        raise UnsupportedInput("x_adv and centre differ in layout: give both contiguous, or both channels-last")
    gradient = gradient.contiguous(memory_format=layout)
    out = torch.empty_like(x_adv)
    arguments = (x_adv, gradient, centre, step_size, eps, out)
    if norm == "linf":
        launch(_linf_step_kernel, (-(-x_adv.numel() // BLOCK),), *arguments, x_adv.numel(), BLOCK=BLOCK)
    else:
        launch(_l2_step_kernel, (len(x_adv),), *arguments, x_adv[0].numel(), num_warps=8, BLOCK=BLOCK_L2)
    return out


def start_point(x: Tensor, rows: Tensor, step: Tensor, eps: Tensor, seed: int, norm: str) -> Tensor:
    """See `op.start_point`. Raises `UnsupportedInput` for other dtypes and for images of no dense layout."""
    channels = x.shape[1] if _layout(x, "x") == torch.channels_last else 1
    out, size = torch.empty_like(x), x[0].numel()
    arguments = (x, rows.contiguous(), step, eps, out, size, signed(seed))
    if norm == "linf":
        grid = (len(x), -(-size // BLOCK))
        launch(_linf_start_kernel, grid, *arguments, CHANNELS=channels, BLOCK=BLOCK)
    else:
        launch(_l2_start_kernel, (len(x),), *arguments, num_warps=8, CHANNELS=channels, BLOCK=BLOCK)
    return out


def _layout(x: Tensor, name: str) -> torch.memory_format:
    """How the images `x` lie in memory; raise `UnsupportedInput` for what the kernels do not take."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnsupportedInput(f"{name} is {x.dtype}: kernels take float32, bfloat16 and float16; use kernels=pytorch")
    if x.dim() != 4 or x.numel() == 0:
        raise UnsupportedInput(f"{name} has shape {tuple(x.shape)}: kernels take images [N, C, H, W], not empty")
    for layout in (torch.contiguous_format, torch.channels_last):
        if x.is_contiguous(memory_format=layout):
            return layout
    raise UnsupportedInput(
        f"{name} of shape {tuple(x.shape)} has strides {x.stride()}: kernels take contiguous and channels-last images; "
        "give x.contiguous()"
    )


def configurations() -> Iterator[tuple[str, Callable[[], object]]]:
    """(label, launcher on meta tensors) of what the recipes run: CIFAR images, batch 128, both norms and layouts."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    layouts = (torch.contiguous_format, torch.channels_last)
    scalar, step = torch.empty((), device="meta"), torch.empty((), device="meta", dtype=torch.int64)
    rows = torch.empty(128, device="meta", dtype=torch.int64)
    for norm, dtype, layout in product(("linf", "l2"), dtypes, layouts):
        x = torch.empty(128, 3, 32, 32, device="meta", dtype=dtype).to(memory_format=layout)
        label = f"{norm} {dtype} {layout}".replace("torch.", "")
        yield f"pgd_step {label}", lambda x=x, norm=norm: pgd_step(x, x, x, scalar, scalar, norm)
        for bits, seed in ((32, 0), (64, 2**63)):  # what a seed fits in decides its type in the kernel
            start = partial(start_point, x, rows, step, scalar, seed, norm)
            yield f"start_point {label}, {bits}-bit seed", start
