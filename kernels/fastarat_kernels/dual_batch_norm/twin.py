"""Batch-norm of `groups` equal parts of a batch, each by its own statistics (Ioffe and Szegedy, ICML 2015), in PyTorch.

`batch_norm` is the definition. The other functions are the bodies of the ops on a CPU, which a test compares with
it: statistics as partials that are merged (Chan, Golub and LeVeque, 1983), and the gradient by hand.

Shapes: x [N, C, H, W] or [N, C] is seen as rows [groups, R, C], R = N*H*W / groups. P partials; S sets of weight and
bias, [S, C], S = groups or 1. Half dtypes are computed in float32, which statistics and sums are kept in as well.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """The definition: y = relu((x - mean_g) * rstd_g * weight_s + bias_s + residual), and statistics [2, groups, C]."""
    rows = as_rows(x, groups)
    statistics = torch.stack([rows.mean(1), rows.var(1, correction=0)])
    mean, variance = statistics[:, :, None]
    out = (rows - mean) * torch.rsqrt(variance + eps) * weight[:, None] + bias[:, None]
    if residual is not None:
        out = out + as_rows(residual, groups)
    return _shaped_as(x, F.relu(out) if relu else out), statistics.detach()


def as_rows(x: Tensor, groups: int) -> Tensor:
    """x [N, C, …] as [groups, R, C], in float32 or float64."""
    return x.movedim(1, -1).reshape(groups, -1, x.shape[1]).to(torch.promote_types(x.dtype, torch.float32))


def _shaped_as(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [groups, R, C] as a tensor of x's shape and dtype."""
    return rows.reshape(x.movedim(1, -1).shape).movedim(-1, 1).to(x.dtype)


def _laid_out_as(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [groups, R, C] as a new tensor of x's shape, dtype and strides: what the ops promise."""
    return torch.empty_like(x).copy_(_shaped_as(x, rows))


def batch_norm_partials(x: Tensor, groups: int) -> Tensor:
    """[1, groups, 3, C]: number of rows, mean, and sum of squares around the mean, of each group's rows."""
    rows = as_rows(x, groups)
    mean = rows.mean(1)
    count = torch.full_like(mean, rows.shape[1])
    return torch.stack([count, mean, (rows - mean[:, None]).square().sum(1)], 1)[None]


def merge_partials(partials: Tensor) -> Tensor:
    """Statistics [2, groups, C] (mean, biased variance) of partials [P, groups, 3, C]; a count may be zero."""
    count, mean, squares = partials.unbind(2)
    total = count.sum(0)
    merged = (count * mean).sum(0) / total
    merged = merged + (count * (mean - merged)).sum(0) / total  # what rounding lost, which counts where |mean| >> std
    return torch.stack([merged, (squares + count * (mean - merged).square()).sum(0) / total])


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
    """(y, bits, statistics): `batch_norm` by the partials' statistics; bits [rows, ceil(C/8)] uint8 say which
    elements the ReLU let through, if there are both a residual and a ReLU, else they are empty.

    The last changes nothing here: by it the op's gradient knows which processes share the statistics.
    """
    statistics = merge_partials(partials)
    out = _affine(as_rows(x, groups), statistics, weight, bias, eps)
    if residual is not None:
        out = out + as_rows(residual, groups)
    if not relu:
        return _laid_out_as(x, out), _no_bits(x), statistics
    bits = _no_bits(x) if residual is None else pack(~(out <= 0).flatten(0, 1))
    return _laid_out_as(x, F.relu(out)), bits, statistics


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
    """(sums [1, 2, groups, C] of g and of g*xhat over the rows, g): g is dy where the ReLU let x through.

    The ReLU's choice is read from `bits`, or computed again from x (`recompute_relu`). g is only given with bits.
    `other`: a second gradient of y, as dy, that is added to it.
    """
    rows = as_rows(x, groups)
    out = _affine(rows, statistics, weight, bias, eps) if recompute_relu else None
    g = as_rows(dy, groups) if other is None else as_rows(dy, groups) + as_rows(other, groups)
    g = _masked(g, bits, out)
    sums = torch.stack([g.sum(1), (g * _normalised(rows, statistics, eps)).sum(1)])
    return sums[None], _laid_out_as(dy, g) if bits.numel() else dy.new_empty(0)


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
    """(dx, totals [2, groups, C]): dx = weight * rstd * (g - mean(g) - xhat * mean(g*xhat)), the means over `num_rows`;
    totals are the sums over P. g as above, or dy where the ReLU's choice is computed again (`recompute_relu`). `other`:
    another gradient of x, in its shape and dtype, that is added to dx."""
    rows = as_rows(x, groups)
    out = _affine(rows, statistics, weight, bias, eps) if recompute_relu else None
    g = _masked(as_rows(g, groups), out=out)
    totals = sums.sum(0)
    mean_g, mean_gx = totals[:, :, None] / num_rows
    dx = g - mean_g - _normalised(rows, statistics, eps) * mean_gx
    dx = dx * torch.rsqrt(statistics[1, :, None] + eps) * weight[:, None]
    return _laid_out_as(x, dx if other is None else dx + as_rows(other, groups)), totals


def _normalised(rows: Tensor, statistics: Tensor, eps: float) -> Tensor:
    mean, variance = statistics[:, :, None]
    return (rows - mean) * torch.rsqrt(variance + eps)


def _affine(rows: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _normalised(rows, statistics, eps) * weight[:, None] + bias[:, None]


def _masked(g: Tensor, bits: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """The gradient as rows, zero where the ReLU cut: as the bits say, or as `out`, what it was given, does."""
    if bits is not None and bits.numel():
        return torch.where(unpack(bits, g.shape[2]).view_as(g), g, 0.0)
    return g if out is None else torch.where(out <= 0, 0.0, g)


def pack(mask: Tensor) -> Tensor:
    """Booleans [rows, C] as bits [rows, ceil(C/8)] uint8, lowest bit first."""
    padded = F.pad(mask, (0, -mask.shape[1] % 8)).unflatten(1, (-1, 8))
    return (padded * 2 ** torch.arange(8, device=mask.device)).sum(2).to(torch.uint8)


def unpack(bits: Tensor, channels: int) -> Tensor:
    """Booleans [rows, channels] from bits [rows, ceil(channels/8)]."""
    each = bits[:, :, None] >> torch.arange(8, device=bits.device, dtype=torch.uint8) & 1
    return each.flatten(1)[:, :channels].bool()


def _no_bits(x: Tensor) -> Tensor:
    return x.new_empty(0, dtype=torch.uint8)
