"""The Triton kernels of the dual batch-norm: two passes forward, two backward, whatever stands behind the batch-norm.

Bytes moved per element in half precision, reads and writes of all passes, counted and not measured; the second pass
goes through the rows the other way, so that it finds in the L2 cache what the first left there:

| both halves | eager PyTorch | inductor, at best | here |
| --- | --- | --- | --- |
| forward: batch-norm, ReLU | 14: norm 6, cat 4, ReLU 4 | 6, and the ReLU's mask | 6 |
| forward: batch-norm, add, ReLU | 20: and add 6 | 8, and the mask | 8.1: 8 and a bit |
| backward: batch-norm, ReLU | 20: ReLU 6, norm 10, cat 4 | 12: mask of a byte, twice | 10: mask from x |
| the same, and another gradient of its input added | 26 | 14 | 12 |
| backward: batch-norm, add, ReLU | 20 | 13 | 12.1 |
| the same, its output's gradient a sum of two | 26 | 15 | 14.1: both are read, no sum is written |

Launches: 2 forward and 2 backward; eager PyTorch takes at least one for each of the five forward operators (two
batch-norms, of several launches each, cat, add, ReLU), and as many backward. Kept for the backward pass: x, which the
convolution before has written anyway, the statistics, and where a residual was added a bit an element; no output.

Sums are deterministic: each program writes its own partial, and merging is in a fixed order.
"""

# Pyright takes a jit function for one that never returns, so it sees no tuple to unpack.
# pyright: reportGeneralTypeIssues=false

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastarat_kernels.dual_batch_norm.blocks import block_channels, block_rows, ceil_div, num_splits
from fastarat_kernels.launch import UnsupportedInput, check_rows, launch

# Tiles that are under way at once, so that few programs keep the memory busy. The bits cost registers: with three
# tiles of two tensors beside them, triton 3.6 spills on sm_100.
STAGES = tl.constexpr(3)
# Partials that are merged at once.
BLOCK_P = tl.constexpr(32)
NUM_WARPS = 8
# These sizes decide no alignment: specialising for them would only compile the same kernel many times.
SIZES = ("num_partials", "num_rows", "rows", "rows_per_split", "groups", "sets")


@triton.jit
def _place(rows, rows_per_split, BLOCK_C: tl.constexpr):
    """This program's group, the first of its rows (of all groups' rows), how many, and its channels."""
    group = tl.program_id(2)
    first = tl.program_id(1) * rows_per_split
    num = tl.maximum(tl.minimum(rows_per_split, rows - first), 0)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    return group, group.to(tl.int64) * rows + first, num, channels


@triton.jit
def _tile(k, first, num, channels, C, BLOCK_R: tl.constexpr):
    """Offsets and mask [BLOCK_R, BLOCK_C] of a program's k-th tile."""
    row = k * BLOCK_R + tl.arange(0, BLOCK_R)
    offsets = (first + row)[:, None] * C + channels[None, :]
    return offsets, (row < num)[:, None] & (channels < C)[None, :]


@triton.jit
def _bits_tile(k, first, num, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets and mask [BLOCK_R, BLOCK_C / 8] of the same tile in the bits [rows, ceil(C / 8)]."""
    row = k * BLOCK_R + tl.arange(0, BLOCK_R)
    byte = tl.program_id(0) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
    num_bytes = (C + 7) // 8
    offsets = (first + row)[:, None] * num_bytes + byte[None, :]
    return offsets, (row < num)[:, None] & (byte < num_bytes)[None, :]


@triton.jit
def _merge(count, mean, squares):
    """Merge (count, mean, sum of squares around it) along the first axis (Chan et al., 1983); a count may be zero."""
    total = tl.sum(count, 0)
    divisor = tl.maximum(total, 1.0)
    merged = tl.sum(count * mean, 0) / divisor
    # What rounding lost of the mean, which counts where |mean| is far above the deviation.
    merged += tl.sum(count * (mean - merged[None, :]), 0) / divisor
    off = mean - merged[None, :]
    return total, merged, tl.sum(squares + count * off * off, 0)


@triton.jit
def _statistics(partials_ptr, num_partials, group, groups, channels, C, BLOCK_C: tl.constexpr):
    """Mean and biased variance [BLOCK_C] of the merged partials [num_partials, groups, 3, C]."""
    count = tl.zeros([BLOCK_C], tl.float32)
    mean = tl.zeros([BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, num_partials, BLOCK_P):
        index = start + tl.arange(0, BLOCK_P)
        inside = (index < num_partials)[:, None] & (channels < C)[None, :]
        at = partials_ptr + ((index * groups + group) * 3 * C)[:, None] + channels[None, :]
        n = tl.load(at, mask=inside, other=0.0)
        tile_mean = tl.load(at + C, mask=inside, other=0.0)
        tile_squares = tl.load(at + 2 * C, mask=inside, other=0.0)
        n, tile_mean, tile_squares = _merge(n, tile_mean, tile_squares)
        total = tl.maximum(count + n, 1.0)
        delta = tile_mean - mean
        mean += delta * (n / total)
        squares += tile_squares + delta * delta * (count * n / total)
        count += n
    return mean, squares / tl.maximum(count, 1.0)


@triton.jit
def _channel_terms(statistics_ptr, weight_ptr, bias_ptr, group, groups, sets, channels, C, eps):
    """mean, rstd, scale = weight * rstd and bias [BLOCK_C] of this program's group."""
    inside = channels < C
    mean = tl.load(statistics_ptr + group * C + channels, mask=inside, other=0.0)
    variance = tl.load(statistics_ptr + (groups + group) * C + channels, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + group % sets * C + channels, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + group % sets * C + channels, mask=inside, other=0.0)
    rstd = tl.rsqrt(variance + eps)
    return mean, rstd, weight * rstd, bias


@triton.jit
def _cut(g, centred, scale, bias, RECOMPUTE: tl.constexpr):
    """The gradient, zero where the ReLU cut, if that is to be computed again."""
    if RECOMPUTE:
        g = tl.where(centred * scale[None, :] + bias[None, :] <= 0, 0.0, g)
    return g


@triton.jit(do_not_specialize=SIZES)
def _partials_kernel(
    x_ptr, partials_ptr, rows, rows_per_split, groups, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Count, mean and sum of squares of each split, by Welford's recurrence in each of BLOCK_R x BLOCK_C lanes."""
    group, first, num, channels = _place(rows, rows_per_split, BLOCK_C)
    mean = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for k in tl.range(0, tl.cdiv(num, BLOCK_R), num_stages=STAGES):
        offsets, inside = _tile(k, first, num, channels, C, BLOCK_R)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        # Only the last tile has absent rows: a lane that is there has seen k + 1 of them.
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta * (1.0 / (k + 1))
        squares += delta * (x - mean)
    lane = tl.arange(0, BLOCK_R)
    count = ((num - lane + BLOCK_R - 1) // BLOCK_R).to(tl.float32)
    total, mean, squares = _merge(count[:, None], mean, squares)
    at = partials_ptr + (tl.program_id(1) * groups + group) * 3 * C + channels
    tl.store(at, tl.zeros([BLOCK_C], tl.float32) + total, mask=channels < C)
    tl.store(at + C, mean, mask=channels < C)
    tl.store(at + 2 * C, squares, mask=channels < C)


@triton.jit(do_not_specialize=SIZES)
def _apply_kernel(
    x_ptr, partials_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, bits_ptr, statistics_ptr,
    num_partials, rows, rows_per_split, groups, sets, C, eps,
    RELU: tl.constexpr, IN_FLIGHT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y, bits and statistics; every program merges the partials of its channels."""
    group, first, num, channels = _place(rows, rows_per_split, BLOCK_C)
    mean, variance = _statistics(partials_ptr, num_partials, group, groups, channels, C, BLOCK_C)
    if tl.program_id(1) == 0:
        tl.store(statistics_ptr + group * C + channels, mean, mask=channels < C)
        tl.store(statistics_ptr + (groups + group) * C + channels, variance, mask=channels < C)
    weight = tl.load(weight_ptr + group % sets * C + channels, mask=channels < C, other=0.0)
    bias = tl.load(bias_ptr + group % sets * C + channels, mask=channels < C, other=0.0)
    scale = weight * tl.rsqrt(variance + eps)
    num_tiles = tl.cdiv(num, BLOCK_R)
    for step in tl.range(0, num_tiles, num_stages=IN_FLIGHT):
        k = num_tiles - 1 - step
        offsets, inside = _tile(k, first, num, channels, C, BLOCK_R)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        out = (x - mean[None, :]) * scale[None, :] + bias[None, :]
        if residual_ptr is not None:
            out += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            passes = inside & ((out <= 0) == 0)  # NaN passes
            if bits_ptr is not None:
                eight = tl.reshape(passes.to(tl.int32), [BLOCK_R, BLOCK_C // 8, 8])
                byte = tl.sum(eight << tl.arange(0, 8)[None, None, :], 2)
                at, there = _bits_tile(k, first, num, C, BLOCK_R, BLOCK_C)
                tl.store(bits_ptr + at, byte.to(tl.uint8), mask=there)
            out = tl.where(passes, out, 0.0)
        tl.store(y_ptr + offsets, out.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _gradient_partials_kernel(
    dy_ptr, other_ptr, x_ptr, statistics_ptr, weight_ptr, bias_ptr, bits_ptr, sums_ptr, g_ptr,
    rows, rows_per_split, groups, sets, C, eps,
    RECOMPUTE: tl.constexpr, IN_FLIGHT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g * xhat of each split, and g where there are bits."""
    group, first, num, channels = _place(rows, rows_per_split, BLOCK_C)
    mean, rstd, scale, bias = _channel_terms(
        statistics_ptr, weight_ptr, bias_ptr, group, groups, sets, channels, C, eps
    )
    sum_g = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    sum_gx = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for k in tl.range(0, tl.cdiv(num, BLOCK_R), num_stages=IN_FLIGHT):
        offsets, inside = _tile(k, first, num, channels, C, BLOCK_R)
        centred = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        g = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        if other_ptr is not None:
            g += tl.load(other_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        g = _cut(g, centred, scale, bias, RECOMPUTE)
        if bits_ptr is not None:
            at, there = _bits_tile(k, first, num, C, BLOCK_R, BLOCK_C)
            byte = tl.load(bits_ptr + at, mask=there, other=0).to(tl.int32)
            bit = (byte[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
            g = tl.where(tl.reshape(bit, [BLOCK_R, BLOCK_C]) == 0, 0.0, g)
        sum_g += g
        sum_gx += g * centred
        if bits_ptr is not None:
            tl.store(g_ptr + offsets, g.to(g_ptr.dtype.element_ty), mask=inside)
    at = sums_ptr + (tl.program_id(1) * 2 * groups + group) * C + channels
    tl.store(at, tl.sum(sum_g, 0), mask=channels < C)
    tl.store(at + groups * C, tl.sum(sum_gx, 0) * rstd, mask=channels < C)


@triton.jit(do_not_specialize=SIZES)
def _input_gradient_kernel(
    g_ptr, other_ptr, x_ptr, statistics_ptr, weight_ptr, bias_ptr, sums_ptr, dx_ptr, totals_ptr,
    num_partials, num_rows, rows, rows_per_split, groups, sets, C, eps,
    RECOMPUTE: tl.constexpr, IN_FLIGHT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx and totals of the sums; every program adds up the sums of its channels."""
    group, first, num, channels = _place(rows, rows_per_split, BLOCK_C)
    mean, rstd, scale, bias = _channel_terms(
        statistics_ptr, weight_ptr, bias_ptr, group, groups, sets, channels, C, eps
    )
    total_g = tl.zeros([BLOCK_C], tl.float32)
    total_gx = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, num_partials, BLOCK_P):
        index = start + tl.arange(0, BLOCK_P)
        there = (index < num_partials)[:, None] & (channels < C)[None, :]
        at = sums_ptr + ((index * 2 * groups + group) * C)[:, None] + channels[None, :]
        total_g += tl.sum(tl.load(at, mask=there, other=0.0), 0)
        total_gx += tl.sum(tl.load(at + groups * C, mask=there, other=0.0), 0)
    if tl.program_id(1) == 0:
        tl.store(totals_ptr + group * C + channels, total_g, mask=channels < C)
        tl.store(totals_ptr + (groups + group) * C + channels, total_gx, mask=channels < C)
    mean_g = total_g / num_rows
    slope = total_gx / num_rows * rstd
    num_tiles = tl.cdiv(num, BLOCK_R)
    for step in tl.range(0, num_tiles, num_stages=IN_FLIGHT):
        k = num_tiles - 1 - step
        offsets, inside = _tile(k, first, num, channels, C, BLOCK_R)
        centred = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        g = tl.load(g_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        g = _cut(g, centred, scale, bias, RECOMPUTE)
        dx = (g - mean_g[None, :] - centred * slope[None, :]) * scale[None, :]
        if other_ptr is not None:
            dx += tl.load(other_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def _division(x: Tensor, groups: int) -> tuple[tuple[int, int, int], dict[str, int], int, int]:
    """Grid (channel tile, row split, group), how a kernel is compiled, rows of a group, and rows of a split."""
    check_rows(x)
    channels = x.shape[1]
    rows = x.numel() // channels // groups
    splits = num_splits(rows, channels, groups)
    block_c = block_channels(channels)
    blocks = {"BLOCK_R": block_rows(channels, x.element_size()), "BLOCK_C": block_c, "num_warps": NUM_WARPS}
    return (ceil_div(channels, block_c), splits, groups), blocks, rows, ceil_div(rows, splits)


def _check_like(x: Tensor, other: Tensor, name: str) -> None:
    check_rows(other, name)
    if other.shape != x.shape or other.dtype != x.dtype:
        raise UnsupportedInput(
            f"{name} is {other.dtype} {tuple(other.shape)}, x is {x.dtype} {tuple(x.shape)}: give both alike"
        )


def batch_norm_partials(x: Tensor, groups: int) -> Tensor:
    """As the twin's, with P = `num_splits`; x float32, bfloat16 or float16, [N, C] or channels-last."""
    grid, blocks, rows, rows_per_split = _division(x, groups)
    channels = x.shape[1]
    partials = torch.empty(grid[1], groups, 3, channels, dtype=torch.float32, device=x.device)
    launch(_partials_kernel, grid, x, partials, rows, rows_per_split, groups, channels, **blocks)
    return partials


def batch_norm_apply(
    x: Tensor,
    partials: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
    process_group: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """As the twin's: (y, bits, statistics)."""
    partials, weight, bias = partials.contiguous(), weight.contiguous(), bias.contiguous()
    grid, blocks, rows, rows_per_split = _division(x, groups)
    channels = x.shape[1]
    if residual is not None:
        _check_like(x, residual, "residual")
    y = torch.empty_like(x)
    num_bits = [groups * rows, ceil_div(channels, 8)] if relu and residual is not None else [0]
    bits = torch.empty(num_bits, dtype=torch.uint8, device=x.device)
    statistics = torch.empty(2, groups, channels, dtype=torch.float32, device=x.device)
    launch(
        _apply_kernel, grid, x, partials, weight, bias, residual, y, _or_none(bits), statistics,
        len(partials), rows, rows_per_split, groups, len(weight), channels, eps,
        RELU=relu, IN_FLIGHT=2 if bits.numel() else STAGES.value, **blocks,
    )  # fmt: skip
    return y, bits, statistics


def batch_norm_gradient_partials(
    dy: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: Tensor,
    groups: int,
    eps: float,
    recompute_relu: bool,
    other: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As the twin's, with P = `num_splits`: (sums, g)."""
    weight, bias = weight.contiguous(), bias.contiguous()
    grid, blocks, rows, rows_per_split = _division(x, groups)
    _check_like(x, dy, "dy")
    if other is not None:
        _check_like(x, other, "other")
    channels = x.shape[1]
    sums = torch.empty(grid[1], 2, groups, channels, dtype=torch.float32, device=x.device)
    g = torch.empty_like(dy) if bits.numel() else dy.new_empty(0)
    launch(
        _gradient_partials_kernel, grid, dy, other, x, statistics, weight, bias, _or_none(bits), sums, _or_none(g),
        rows, rows_per_split, groups, len(weight), channels, eps,
        RECOMPUTE=recompute_relu, IN_FLIGHT=_stages(other), **blocks,
    )  # fmt: skip
    return sums, g


def batch_norm_input_gradient(
    g: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor,
    num_rows: int,
    groups: int,
    eps: float,
    recompute_relu: bool,
    other: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As the twin's: (dx, totals)."""
    weight, bias = weight.contiguous(), bias.contiguous()
    grid, blocks, rows, rows_per_split = _division(x, groups)
    _check_like(x, g, "g")
    if other is not None:
        _check_like(x, other, "other")
    channels = x.shape[1]
    dx = torch.empty_like(x)
    totals = torch.empty(sums.shape[1:], dtype=torch.float32, device=x.device)
    launch(
        _input_gradient_kernel, grid, g, other, x, statistics, weight, bias, sums, dx, totals,
        len(sums), num_rows, rows, rows_per_split, groups, len(weight), channels, eps,
        RECOMPUTE=recompute_relu, IN_FLIGHT=_stages(other), **blocks,
    )  # fmt: skip
    return dx, totals


def _stages(other: Tensor | None) -> int:
    """Tiles that are under way at once: with a third tensor two, as with bits, so that more programs find room for
    theirs in shared memory (40 KiB a program for 56; not measured)."""
    return STAGES.value if other is None else 2


def _or_none(tensor: Tensor) -> Tensor | None:
    """Kernels take an absent tensor as None."""
    return tensor if tensor.numel() else None


# (channels, side, kinds of layer) on images of 32 x 32, ResNet-50's of 224 x 224; a kind: (has a residual, has a ReLU).
_PLAIN, _RELU, _RESIDUAL = (False, False), (False, True), (True, True)
RESNET_18 = tuple((64 << i, 32 >> i, (_PLAIN, _RELU, _RESIDUAL)) for i in range(4))
WRN_34_10 = tuple((channels, side, (_RELU,)) for channels, side in ((16, 32), (160, 32), (320, 16), (640, 8)))
RESNET_50 = (
    (64, 112, (_RELU,)),
    *((64 << i, 56 >> i, (_RELU,)) for i in range(4)),
    *((256 << i, 56 >> i, (_PLAIN, _RESIDUAL)) for i in range(4)),
)


def configurations() -> Iterator[tuple[str, Callable[[], object]]]:
    """(label, start) for the layers of ResNet-18, WRN-34-10 and ResNet-50 at batch 128: training on both halves, the
    attack on one. `start` runs a forward and a backward pass on tensors of device meta, with another gradient and
    without."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for channels, side, kinds in RESNET_18 + WRN_34_10 + RESNET_50:
            for has_residual, relu in kinds:
                kind = f"{name} {channels}x{side}x{side}{' residual' * has_residual}{' relu' * relu}"
                for label, groups in (("train", 2), ("attack", 1)):
                    shape = (128 * groups, channels, side, side)
                    start = partial(_pass, shape, dtype, groups, has_residual, relu)
                    yield f"{label} {kind}", start


def _pass(shape: tuple[int, ...], dtype: torch.dtype, groups: int, has_residual: bool, relu: bool) -> None:
    """One forward and backward pass as a step runs them, on tensors without memory."""
    x = torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)
    weight = torch.empty(groups, shape[1], device="meta")
    partials = batch_norm_partials(x, groups)
    y, bits, statistics = batch_norm_apply(x, partials, weight, weight, x if has_residual else None, groups, 1e-5, relu)
    common = (x, statistics, weight, weight)
    settings = (groups, 1e-5, relu and not has_residual)
    sums, g = batch_norm_gradient_partials(y, *common, bits, *settings)
    rows = x.numel() // shape[1] // groups
    batch_norm_input_gradient(g if bits.numel() else y, *common, sums, rows, *settings)
    # And where two gradients meet.
    if bits.numel():
        batch_norm_gradient_partials(y, *common, bits, *settings, x)
    else:
        batch_norm_input_gradient(y, *common, sums, rows, *settings, x)
