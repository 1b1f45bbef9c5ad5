"""`dual_batch_norm`: the ops, their gradients, and what stands between them where statistics span processes.

An op is functional and knows no collectives: those are called between the reduction and the pass that uses it, both
ways. So everything is traced into one graph, and the merge is the same for the splits of one process and of all.
"""

from typing import Any

import torch
from torch import Tensor

from fastarat_kernels.dual_batch_norm import twin
from fastarat_kernels.dual_batch_norm.blocks import num_splits
from fastarat_kernels.gathered import gathered
from fastarat_kernels.launch import UnsupportedInput
from fastarat_kernels.torch_op import torch_op


def dual_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
    *,
    groups: int,
    eps: float,
    process_group: str = "",
) -> tuple[Tensor, Tensor]:
    """Normalise each of the `groups` equal parts of x [N, C, H, W] (or [N, C]) by its own statistics:

        y = relu((x - mean_g) * rsqrt(variance_g + eps) * weight_s + bias_s + residual)

    `weight`, `bias`: [groups, C], or [1, C] for all groups; float32 (float64 with x). `residual`: as x, or None.
    `process_group`: name of a torch.distributed group, "" for none: statistics over the rows of all its
    processes, each with equally many; parameters then get the gradient of this process's loss terms, to be averaged
    as torch.nn.parallel.DistributedDataParallel does.

    Returns y (x's dtype and layout), and mean and biased variance [2, groups, C], detached, float32 (float64 with x).
    So laid out, the means of all groups are dense, and so are the variances.
    Raises `UnsupportedInput` for shapes that do not fit; on a GPU also unless x and residual are channels-last.
    """
    _check(x, weight, bias, residual, groups)
    partials = gathered(batch_norm_partials(x.detach(), groups), process_group)
    y, _, statistics = batch_norm_apply(x, partials, weight, bias, residual, groups, eps, relu, process_group)
    return y, statistics.detach()


def _check(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int) -> None:
    if x.dim() not in (2, 4):
        raise UnsupportedInput(f"x has shape {tuple(x.shape)}: give [N, C] or [N, C, H, W]")
    if groups not in (1, 2):
        raise UnsupportedInput(f"groups is {groups}: give 1 or 2")
    if x.shape[0] % groups:
        raise UnsupportedInput(f"{x.shape[0]} rows are not {groups} equal halves: give as many clean as adversarial")
    if x.numel() == 0:
        raise UnsupportedInput(f"x has shape {tuple(x.shape)}: give at least one row in each half, and one channel")
    channels, wide = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    for name, values in (("weight", weight), ("bias", bias)):
        if values.dtype != wide or values.shape not in ((groups, channels), (1, channels)):
            raise UnsupportedInput(
                f"{name} is {values.dtype} {tuple(values.shape)}: give {wide} [{groups} or 1, {channels}]"
            )
    if weight.shape != bias.shape:
        raise UnsupportedInput(f"weight is {tuple(weight.shape)}, bias {tuple(bias.shape)}: give both alike")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise UnsupportedInput(
            f"residual is {residual.dtype} {tuple(residual.shape)}, x is {x.dtype} {tuple(x.shape)}: give both alike"
        )


def _num_splits(x: Tensor, groups: int) -> int:
    """P of the op's bodies: the twin reduces in one go."""
    if x.device.type == "cpu":
        return 1
    return num_splits(int(x.numel()) // int(x.shape[1]) // groups, int(x.shape[1]), groups)


def _empty_partials(x: Tensor, groups: int) -> Tensor:
    return x.new_empty(_num_splits(x, groups), groups, 3, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


def _empty_apply(
    x: Tensor, partials: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    groups, _, relu = settings[:3]
    channels = x.shape[1]
    num_bits = (x.numel() // channels, (channels + 7) // 8) if relu and residual is not None else (0,)
    return torch.empty_like(x), x.new_empty(num_bits, dtype=torch.uint8), partials.new_empty(2, groups, channels)


def _empty_gradient_partials(
    dy: Tensor, x: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor, bits: Tensor, groups: int, *_: Any
) -> tuple[Tensor, Tensor]:
    g = torch.empty_like(dy) if bits.numel() else dy.new_empty(0)
    return statistics.new_empty(_num_splits(x, groups), 2, groups, x.shape[1]), g


def _empty_input_gradient(
    g: Tensor, x: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor, sums: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), sums.new_empty(sums.shape[1:])


batch_norm_partials = torch_op(twin.batch_norm_partials, _empty_partials)
batch_norm_apply = torch_op(twin.batch_norm_apply, _empty_apply)
batch_norm_gradient_partials = torch_op(twin.batch_norm_gradient_partials, _empty_gradient_partials)
batch_norm_input_gradient = torch_op(twin.batch_norm_input_gradient, _empty_input_gradient)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, weight, bias, residual, ctx.groups, ctx.eps, relu, ctx.process_group = inputs
    _, bits, statistics = output
    ctx.recompute_relu = relu and residual is None
    ctx.save_for_backward(x, statistics, weight, bias, bits)
    ctx.mark_non_differentiable(bits, statistics)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and residual; the other arguments have none."""
    if dy is None:
        return (None,) * 9
    x, statistics, weight, bias, bits = ctx.saved_tensors
    needs_x, _, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:5]
    settings = (ctx.groups, ctx.eps, ctx.recompute_relu)
    dy = dy.contiguous(memory_format=torch.channels_last if dy.dim() == 4 else torch.contiguous_format)
    sums, g = batch_norm_gradient_partials(dy, x, statistics, weight, bias, bits, *settings)
    g = g if bits.numel() else dy
    everyones = gathered(sums, ctx.process_group)
    num_rows = x.numel() // x.shape[1] // ctx.groups * (len(everyones) // len(sums))
    dx, totals = batch_norm_input_gradient(g, x, statistics, weight, bias, everyones, num_rows, *settings)
    # The gradients of parameters are of this process's rows: the owner of the parameters averages them.
    totals = totals if everyones is sums else sums.sum(0)
    dweight = _of_sets(totals[1], weight) if needs_weight else None
    dbias = _of_sets(totals[0], bias) if needs_bias else None
    return dx if needs_x else None, None, dweight, dbias, g if needs_residual else None, None, None, None, None


def _of_sets(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient [groups, C] of a parameter [S, C]: summed over the groups that share it."""
    return gradient if gradient.shape == parameter.shape else gradient.sum(0, keepdim=True)


batch_norm_apply.register_autograd(_backward, setup_context=_save)
