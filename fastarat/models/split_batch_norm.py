"""Batch-norm with a clean and an adversarial branch, and the forward pass that chooses between them.

A net is an ordinary `nn.Module`; its `SplitBatchNorm2d` layers share one `ForwardContext`, which says how the
next forward runs. `forward` sets it: by one branch, or by both over the rows [clean; adversarial].
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from fastarat_kernels.dual_batch_norm import dual_batch_norm
from fastarat_kernels.implementations import PYTORCH, Kernels
from fastarat_kernels.running_statistics import move_running_statistics
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fastarat.config.model import BatchNormKind, Branch
from fastarat.models.batch_norm import Statistics, batch_norm, synchronised_batch_norm

BRANCHES: tuple[Branch, Branch] = ("clean", "adv")


@dataclass
class ForwardContext:
    """How the next forward of a net runs; one object shared by all its layers that care."""

    branch: Branch | Literal["both"] = "adv"
    statistics: Statistics | None = None
    """None: as the layer's own train or eval mode says."""
    record: bool = False
    order: tuple[Branch, Branch] = BRANCHES
    """Which half updates shared running statistics first."""
    momentum: float | None = None
    """Weight of a new batch in the running statistics, for all layers; None: each layer's own."""
    group: ProcessGroup | None = None
    kernels: Kernels = PYTORCH
    batches: "list[BatchStatistics]" = field(default_factory=list)
    """what layers saw in this forward, fused or synchronised, by which the running statistics move at its end"""
    features: dict[str, Tensor] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, object]) -> "ForwardContext":
        # A copied net has a context of its own, and the same process group, which cannot be copied.
        return replace(self, features={}, batches=[])


class SplitBatchNorm2d(nn.Module):
    """Batch-norm over [N, C, H, W] that holds both branches in stacked tensors.

    `split`: affine parameters and running statistics [2, C], row 0 clean, row 1 adversarial.
    `shared`: [1, C], each half normalised by its own statistics. `mixed`: [1, C], both halves
    normalised together. AR-AT's is `split` (Waseda et al., ICLR 2025, section 3).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, kind: BatchNormKind = "split", eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        num_sets = 2 if kind == "split" else 1
        self.kind: BatchNormKind = kind
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_sets, num_features))
        self.bias = nn.Parameter(torch.zeros(num_sets, num_features))
        self.register_buffer("running_mean", torch.zeros(num_sets, num_features))
        self.register_buffer("running_var", torch.ones(num_sets, num_features))
        self.context = ForwardContext()
        # What this layer becomes in a plain net.
        self.plain: type[_BatchNorm] = PlainBatchNorm2d
        self.taps: tuple[str, ...] = ()

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, kind={self.kind!r}"

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalise, then add `residual` (same shape as `x`), then ReLU, each if asked for."""
        context = self.context
        tapped = bool(self.taps) and context.record
        # By running statistics a batch-norm is pointwise: a compiler fuses it with all that stands round it.
        fused = context.kernels.fuses(x.shape[1:]) and self._statistics != "eval"
        if fused and not tapped:
            return self._by_parts(x, residual, relu)
        out = self._by_parts(x) if fused else self._normalise(x)
        if tapped:
            context.features |= dict.fromkeys(self.taps, context.kernels.pooled_features(out))
            if residual is None and not relu:
                out = out.clone()  # a foreign net may add to it in place; the features' gradient needs it as it is
        if residual is not None:
            out = out + residual
        return F.relu(out) if relu else out

    @property
    def _statistics(self) -> Statistics:
        return self.context.statistics or ("train" if self.training else "eval")

    def _by_parts(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Each part by its own statistics, in one go; `residual` and `relu` are for the fused kernels alone."""
        context, group = self.context, self.context.group
        num_parts = 2 if context.branch == "both" and self.kind != "mixed" else 1
        i = BRANCHES.index("adv" if context.branch == "both" else context.branch)
        rows = slice(0, 2) if num_parts == 2 else slice(i, i + 1)
        rows = rows if self.kind == "split" else slice(0, 1)
        weight, bias = self.weight[rows], self.bias[rows]
        if context.kernels.fuses(x.shape[1:]):
            name = "" if group is None else group.group_name
            affine = weight, bias, residual
            out, found = dual_batch_norm(x, *affine, relu, groups=num_parts, eps=self.eps, process_group=name)
        else:
            assert group is not None
            out, found = synchronised_batch_norm(x, weight, bias, group, num_parts, self.eps)
        if self._statistics == "train":
            self._move_earlier_call()
            num_elements = x.numel() // x.shape[1] // num_parts * (1 if group is None else group.size())
            context.batches.append(BatchStatistics(self, rows, found, num_elements))
        return out

    def _normalise(self, x: Tensor) -> Tensor:
        if self.context.group is not None and self._statistics != "eval":
            return self._by_parts(x)
        self._move_earlier_call()
        if self.context.branch != "both":
            return self._branch(x, self.context.branch)
        if self.kind == "mixed":
            return self._branch(x, "adv")
        halves = dict(zip(BRANCHES, x.chunk(2), strict=True))
        done = {branch: self._branch(halves[branch], branch) for branch in self.context.order}
        return torch.cat([done["clean"], done["adv"]])

    def _move_earlier_call(self) -> None:
        """Move by what this layer saw in a call before: one that a net calls twice moves twice, in that order."""
        if any(batch.layer is self for batch in self.context.batches):
            move_by_batches(self.context)

    def _branch(self, x: Tensor, branch: Branch) -> Tensor:
        i = BRANCHES.index(branch) if self.kind == "split" else 0
        context = self.context
        return batch_norm(
            x,
            self.running_mean[i],
            self.running_var[i],
            self.weight[i],
            self.bias[i],
            self._statistics,
            self.momentum if context.momentum is None else context.momentum,
            self.eps,
        )


class BatchStatistics(NamedTuple):
    """What a layer saw: mean and biased variance [2, groups, C] over `num_elements` a group."""

    layer: SplitBatchNorm2d
    rows: slice
    """those of the layer's running statistics that move"""
    values: Tensor
    num_elements: int


@torch.no_grad()
def move_by_batches(context: ForwardContext) -> None:
    """Move the running statistics of all layers in `context.batches` at once."""
    running, batch, scales, momenta = [], [], [], []
    for layer, rows, found, num_elements in context.batches:
        momentum = layer.momentum if context.momentum is None else context.momentum
        if found.shape[1] > rows.stop - rows.start:
            # Both halves move one running set, one after the other: together one move by a weighted mean.
            first, second = (found[:, BRANCHES.index(branch)] for branch in context.order)
            found = (((1 - momentum) * first + second) / (2 - momentum))[:, None]
            momentum = 1 - (1 - momentum) ** 2
        running += [layer.running_mean[rows], layer.running_var[rows]]
        batch += [*found]
        scales += [1.0, num_elements / max(num_elements - 1, 1)]
        momenta += [momentum, momentum]
    context.batches = []
    move_running_statistics(running, batch, scales, momenta)


class PlainBatchNorm2d(nn.BatchNorm2d):
    """torch.nn.BatchNorm2d with the call of `SplitBatchNorm2d`, over [N, C, …]: for exported, single-branch nets."""

    def _check_input_dim(self, input: Tensor) -> None:
        # A layer that was synchronised may have stood over [N, C].
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, …], not {list(input.shape)}")

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalise [N, C, …], then add `residual` (same shape), then ReLU, each if asked for."""
        out = super().forward(input)
        out = out if residual is None else out + residual
        return torch.relu(out) if relu else out


def connect(model: nn.Module) -> ForwardContext:
    """Let all split batch-norms of `model` share one `ForwardContext`, and return it."""
    shared = ForwardContext()
    for layer in model.modules():
        if isinstance(layer, SplitBatchNorm2d):
            layer.context = shared
    return shared


def forward_context(model: nn.Module) -> ForwardContext | None:
    """The `ForwardContext` that the split batch-norms of `model` share, however wrapped; None for a plain module."""
    return next((layer.context for layer in model.modules() if isinstance(layer, SplitBatchNorm2d)), None)


@contextmanager
def _in_context(
    context: ForwardContext, branch: Branch | Literal["both"], statistics: Statistics, record: bool
) -> Iterator[None]:
    """Set the context of one forward, and leave the net as it was."""
    before = context.branch, context.statistics, context.record
    context.branch, context.statistics, context.record = branch, statistics, record
    try:
        yield
        if context.batches:
            move_by_batches(context)
    finally:
        context.branch, context.statistics, context.record = before
        context.batches = []


def forward(
    model: nn.Module,
    x: Tensor,
    branch: Branch | Literal["both"] = "adv",
    statistics: Statistics = "eval",
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Logits [N, K] of `x` [N, C, H, W] by one branch, or by both over the rows [clean; adversarial].

    `weights` stand in for the parameters of these names. A plain module has one branch and its own train or
    eval mode: it is called as it is.
    """
    context = forward_context(model)
    if context is None:
        return functional_call(model, dict(weights), x) if weights else model(x)
    with _in_context(context, branch, statistics, record=False):
        return functional_call(model, dict(weights), x) if weights else model(x)


def forward_with_features(
    model: nn.Module, x: Tensor, branch: Branch | Literal["both"], statistics: Statistics
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `forward`, and the pooled features {layer: [N, d]} of the layers named to `tap_layers`."""
    context = forward_context(model)
    assert context is not None, "features need a net with split batch-norms"
    context.features = {}
    with _in_context(context, branch, statistics, record=True):
        logits = model(x)
    features, context.features = context.features, {}
    return logits, features


def statistics_of(model: nn.Module) -> Iterable[Tensor]:
    """The running statistics of all split batch-norms, in the order of the modules."""
    for layer in model.modules():
        if isinstance(layer, SplitBatchNorm2d):
            yield layer.running_mean
            yield layer.running_var
