"""Batch normalisation of one group of rows, with statistics over one or several processes, and any module's mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
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
    group: ProcessGroup | None = None,
) -> Tensor:
    """Normalise `x` [N, C, …] (any float dtype) over all but C; the vectors are [C].

    With `group`, the statistics are those of the rows of all its processes (every one with equally
    many rows). The running variance takes the unbiased estimate, as torch.nn.BatchNorm2d does.
    """
    if statistics == "eval":
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if group is None:
        running = (running_mean, running_var) if statistics == "train" else (None, None)
        return F.batch_norm(x, *running, weight, bias, True, momentum, eps)
    # Two reductions (mean, then squares around it) rather than one of sums and squares: half the
    # cancellation, and a batch-norm that agrees with the one-process one to rounding.
    num_processes = group.size()
    values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean = _SumOverProcesses.apply(values.mean(axes), group) / num_processes
    centred = values - mean.view(shape)
    variance = _SumOverProcesses.apply(centred.square().mean(axes), group) / num_processes
    if statistics == "train":
        count = x.numel() // x.shape[1] * num_processes
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    scale = weight * torch.rsqrt(variance + eps)
    return (centred * scale.view(shape) + bias.view(shape)).to(x.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes. Its gradient is such a sum again: every process's loss depends on every summand."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


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
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, "train", group=self.group)


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
