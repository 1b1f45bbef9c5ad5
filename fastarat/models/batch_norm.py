"""Batch normalisation of one group of rows, with statistics over one or several processes, and any module's mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from fastarat_kernels.gathered import gathered
from fastarat_kernels.running_statistics import move_running_statistics
from torch import Tensor, nn
from torch.distributed import ProcessGroup

Statistics = Literal["train", "frozen", "eval"]
"""train: normalise by the batch and update the running statistics; frozen: normalise by the batch
and leave them; eval: normalise by the running statistics."""


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Statistics,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise `x` [N, C, …] (any float dtype) over all but C; the vectors are [C]. The running variance takes the
    unbiased estimate, as torch.nn.BatchNorm2d does."""
    if statistics == "eval":
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    running = (running_mean, running_var) if statistics == "train" else (None, None)
    return F.batch_norm(x, *running, weight, bias, True, momentum, eps)


def synchronised_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, group: ProcessGroup, num_parts: int = 1, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Normalise each of `num_parts` equal parts of `x` [N, C, …] by its rows in all processes, each with equally many.

    `weight`, `bias`: [num_parts, C], or [1, C] for all parts. Returns the normalised `x` in its dtype, and what it was
    normalised by, detached: mean and biased variance [2, num_parts, C]. One collective, and one for the gradient;
    parameters get the gradient of this process's rows.
    """
    values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    values = values.unflatten(0, (num_parts, -1))
    axes = [axis for axis in range(values.dim()) if axis not in (0, 2)]
    shape = [-1, 1, x.shape[1]] + [1] * (x.dim() - 2)
    # Squares around each process's own mean, brought to the common one: sums and sums of squares would cancel.
    mean = values.mean(axes)
    variance = (values - mean.view(shape)).square().mean(axes)
    merged = _OverProcesses.apply(torch.stack([mean, variance]), group.group_name, group.size())
    scale = (weight * torch.rsqrt(merged[1] + eps)).view(shape)
    out = (values - merged[0].view(shape)) * scale + bias.view(shape)
    return out.flatten(0, 1).to(x.dtype), merged.detach()


class _OverProcesses(torch.autograd.Function):
    """Mean and biased variance [2, …] of the rows of all processes, from each one's (Chan, Golub and LeVeque, 1983).
    Every process's loss depends on every one's statistics: their gradients are added up."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: str, num_processes: int) -> Tensor:
        ctx.group, ctx.num_processes = group, num_processes
        means, variances = gathered(own[None], group).unbind(1)
        mean = means.mean(0)
        distance = own[0] - mean
        ctx.save_for_backward(distance)
        return torch.stack([mean, (variances + (means - mean).square()).mean(0)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (distance,) = ctx.saved_tensors
        of_mean, of_variance = gathered(gradients[0][None].contiguous(), ctx.group).mean(0)
        return torch.stack([of_mean + 2 * distance * of_variance, of_variance]), None, None


class BatchNorm1d(nn.Module):
    """Batch-norm over [N, C] in training mode, with torch.nn.BatchNorm1d's parameters and running statistics,
    whose batch statistics can span processes (`group`)."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.group: ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] to [N, C], normalised by the batch; moves the running statistics."""
        running = self.running_mean, self.running_var
        if self.group is None:
            return batch_norm(x, *running, self.weight, self.bias, "train")
        out, statistics = synchronised_batch_norm(x, self.weight, self.bias, self.group)
        num_rows = len(x) * self.group.size()
        scales, momenta = [1.0, num_rows / max(num_rows - 1, 1)], [0.1, 0.1]
        move_running_statistics([*running], [*statistics[:, 0]], scales, momenta)
        return out


@contextmanager
def batch_norm_mode(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Run any module with its batch-norms in this mode; afterwards every submodule's mode is as before,
    and so, unless `train`, are all buffers."""
    modes = {module: module.training for module in switchable(model)}
    kept = {} if statistics == "train" else {b: b.clone() for b in model.buffers()}
    to_mode(model, statistics != "eval")
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for buffer, value in kept.items():
            buffer.copy_(value)


def switchable(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of `model` that have a train and an eval mode: all but nets of `torch.export`, which compute as they
    were exported, whose train() and eval() raise, and whose `training` says nothing."""
    if isinstance(model, torch.fx.GraphModule) and "train" in vars(model):
        return
    yield model
    for child in model.children():
        yield from switchable(child)


def to_mode(model: nn.Module, training: bool) -> nn.Module:
    """`model` itself, in train or eval mode but for what has no modes (see `switchable`)."""
    try:
        return model.train(training)
    except NotImplementedError:
        for part in switchable(model):
            part.training = training
        return model
