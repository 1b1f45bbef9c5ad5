"""Averages of the weights over training: exponential (EMA) or equal over snapshots (SWA)."""

import copy
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Literal

import torch
from fastarat_kernels.implementations import PYTORCH
from torch import Tensor, nn

from fastarat.attacks.pgd import pgd, start
from fastarat.config.attack import AttackConfig
from fastarat.config.model import Branch
from fastarat.config.training import AveragingConfig
from fastarat.data.loading.loader import Batch
from fastarat.models.published_names import split_layers
from fastarat.models.split_batch_norm import SplitBatchNorm2d, forward, forward_context
from fastarat.training.step.precision import Precision


class Average:
    """A second net that holds the averaged weights of `model`.

    EMA averages the running statistics too. An SWA net's fit no weights in it: they are estimated anew,
    by `reestimate`, before it is used.
    """

    def __init__(self, settings: AveragingConfig, model: nn.Module):
        self.settings = settings
        self.model = copy.deepcopy(model)
        if context := forward_context(self.model):
            context.kernels = PYTORCH  # it runs eagerly alone, where the host starts Triton's kernels one by one
        self.num_snapshots = 0
        # Tensors that change in place only, listed once.
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self.averages, self.values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        # Indices and counts, which have no mean.
        self.copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int, epoch: int) -> None:
        """Take the net as it is after step `step` (from 1) of epoch `epoch` (from 1), if its turn has come."""
        if epoch < self.settings.start_epoch:
            return
        if self.settings.kind == "swa" and step % self.settings.every_steps:
            return
        share = 1 / (self.num_snapshots + 1)
        if self.settings.kind == "ema" and self.num_snapshots:
            share = 1 - self.settings.decay
        torch._foreach_lerp_(self.averages, self.values, share)
        for copy_of, value in self.copied:
            copy_of.copy_(value)
        self.num_snapshots += 1

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"model": self.model.state_dict(), "num_snapshots": self.num_snapshots}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what `state_dict` gave."""
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        self.num_snapshots = int(state["num_snapshots"])  # type: ignore[call-overload]


class CumulativeForward:
    """Forwards after which each set of running statistics is the plain mean over those that passed it."""

    def __init__(self, model: nn.Module):
        context = forward_context(model)
        assert context is not None
        self.model, self.context = model, context
        self.num_forwards = Counter[str]()

    def __call__(self, x: Tensor, branch: Branch | Literal["both"] = "adv") -> Tensor:
        of = branch if split_layers(self.model) else "the one set"
        self.num_forwards[of] += 1
        self.context.momentum = 1 / self.num_forwards[of]
        logits = forward(self.model, x, branch, "train")
        self.context.momentum = None
        return logits


def reestimate(
    model: nn.Module,
    batches: Iterable[Batch],
    attack: AttackConfig,
    *,
    settings: AveragingConfig,
    precision: Precision,
    seed: int,
    halves: tuple[Branch, ...],
) -> None:
    """Estimate an averaged net's batch-norm statistics in place: plain means over `batches`, as training fed them.

    Batch i has the start noise of step i by `seed`. `halves`: see `Method.halves`. Adversarial images are attacked on
    the net's own batch statistics, which the attack does not count. `published-code` counts the attack's forwards, and
    leaves clean images out.
    """
    for layer in model.modules():
        if isinstance(layer, SplitBatchNorm2d):
            layer.running_mean.zero_()
            layer.running_var.fill_(1)
    published = settings.reestimate == "published-code"
    counted = CumulativeForward(model)
    attacked = counted if published else partial(forward, model, branch="adv", statistics="frozen")
    mixed = any(isinstance(layer, SplitBatchNorm2d) and layer.kind == "mixed" for layer in model.modules())
    for i, batch in enumerate(batches):
        with precision.autocast():
            first, centre = start(attack, batch.x, batch.rows, i, seed=seed)
            x_adv = pgd(attack, attacked, centre, first, batch.y)
            with torch.no_grad():
                if published:
                    counted(x_adv)
                elif mixed and len(halves) == 2:
                    counted(torch.cat([batch.x, x_adv]), "both")
                else:
                    for half in halves:
                        counted(x_adv if half == "adv" else batch.x, half)
