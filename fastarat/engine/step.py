"""One training step: attack, loss, gradients, mean over processes, update. All of it is on this screen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastarat.attacks.pgd import pgd, start_noise, start_point
from fastarat.attacks.settings import AttackConfig
from fastarat.data.loader import Batch
from fastarat.engine.distributed import World, mean_over_processes
from fastarat.engine.optimizer import sgd_
from fastarat.engine.precision import Precision
from fastarat.engine.settings import OptimizerConfig
from fastarat.methods.method import Method
from fastarat.models.split_batch_norm import forward


@dataclass(frozen=True)
class StepParts:
    """What a step works with; the tensors in it are updated in place."""

    model: nn.Module
    method: Method
    attack: AttackConfig
    optimizer: OptimizerConfig
    precision: Precision
    world: World
    parameters: Sequence[Tensor]
    momenta: list[Tensor]
    seed: int


def train_step(parts: StepParts, batch: Batch, step: Tensor, learning_rate: Tensor) -> dict[str, Tensor]:
    """Train on one batch; returns the method's metrics, scalars on the device.

    `step` (int64) and `learning_rate` (float) are scalar tensors, so that nothing here changes between
    steps but tensors, and nothing waits for the device.
    """
    model, method, attack, optimizer = parts.model, parts.method, parts.attack, parts.optimizer

    with parts.precision.autocast():
        noise = start_noise(attack, batch.x, parts.seed, step, batch.rows)
        x, start = start_point(batch.x, noise, attack)
        x_adv = pgd(attack, lambda v: forward(model, v, "adv", attack.batch_norm), x, start, batch.y)
        loss, metrics = method.loss(model, x, x_adv, batch.y)

    gradients = torch.autograd.grad(
        parts.precision.scaled(loss), parts.parameters, allow_unused=True, materialize_grads=True
    )
    gradients = mean_over_processes(list(gradients), parts.world)
    gradients, keep = parts.precision.unscale(gradients)
    sgd_(
        parts.parameters,
        gradients,
        parts.momenta,
        learning_rate,
        optimizer.momentum,
        optimizer.weight_decay,
        keep,
    )
    return metrics
