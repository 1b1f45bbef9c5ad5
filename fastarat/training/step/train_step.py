"""One training step: attack, loss, gradients, mean over processes, update. All of it is on this screen.

The step has three stages, each a function of tensors, so that it can be compiled whole or stage by stage
(`fastarat.training.compiling.compiled`).
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from fastarat_kernels.implementations import Kernels
from torch import Tensor, nn

from fastarat.attacks import pgd
from fastarat.common.distributed import World
from fastarat.config.attack import AttackConfig
from fastarat.config.training import OptimizerConfig
from fastarat.data.loading.loader import Batch
from fastarat.methods.method import Method
from fastarat.models.split_batch_norm import forward
from fastarat.training.step.gradients import mean_gradients
from fastarat.training.step.precision import Precision
from fastarat.training.step.update import update_

Step = Callable[[Batch], dict[str, Tensor]]
"""trains on a batch, however it is run; returns the method's metrics, scalars on the device"""


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """What a step works with; the tensors in it are updated in place. A copy by `replace` has momenta of its own, 0."""

    model: nn.Module
    method: Method
    attack: AttackConfig
    optimizer: OptimizerConfig
    precision: Precision
    world: World
    kernels: Kernels
    seed: int
    bf16_gradients: bool = False
    """see `fastarat.training.step.gradients`"""
    parameters: list[Tensor] = field(init=False)
    """what is trained, of the net and of the method: float32, float64 for fp64"""
    momenta: list[Tensor] = field(init=False)
    """of the optimizer, one for each parameter, in its shape and dtype"""
    zero: Tensor = field(init=False)
    """a scalar 0 that requires grad: torch.compile differentiates by a graph's input, not by a leaf made inside (see
    `fastarat.attacks.pgd.GradientContext`)"""

    def __post_init__(self) -> None:
        parameters = [p for p in (*self.model.parameters(), *self.method.parameters()) if p.requires_grad]
        dtype, device = self.precision.parameter_dtype, self.world.device
        # A frozen dataclass is filled this way alone.
        object.__setattr__(self, "parameters", parameters)
        object.__setattr__(self, "momenta", [torch.zeros_like(parameter) for parameter in parameters])
        object.__setattr__(self, "zero", torch.zeros((), dtype=dtype, device=device, requires_grad=True))

    def computed_with(self, kernels: Kernels) -> "StepParts":
        """The same with other kernels; it shares every tensor, momenta too."""
        other = copy(self)
        object.__setattr__(other, "kernels", kernels)
        return other


class Controls(NamedTuple):
    """What changes between steps, beyond the batch: scalars on the device, so that nothing waits for the host."""

    step: Tensor
    """int64, from 0"""
    learning_rate: Tensor
    eps: Tensor
    """radius of the attack's ball, in pixel units"""
    step_size: Tensor
    """of the attack, in pixel units"""

    @classmethod
    def of(cls, parts: StepParts, step: int = 0, learning_rate: float = 0.0) -> "Controls":
        """Those of step `step`, with the sizes of the parts' attack."""
        new, settings = parts.zero.detach().new_tensor, parts.attack
        return cls(new(step, dtype=torch.int64), new(learning_rate), new(settings.eps), new(settings.step_size))


class Fixed(NamedTuple):
    """What the steps of one attack share."""

    centre: Tensor
    """of the ball: images [B, C, H, W]"""
    clean_log_probabilities: Tensor | None
    """what the KL objective holds constant: [B, K]"""
    weights: dict[str, Tensor]
    """see `Precision.constant_weights`; by the names of the net's parameters"""


class Stages(NamedTuple):
    """The three functions of a step, as they are or compiled."""

    start_attack: Callable[..., tuple[Tensor, Fixed]]
    attack_step: Callable[..., Tensor]
    descend: Callable[..., dict[str, Tensor]]


def start_attack(parts: StepParts, batch: Batch, controls: Controls) -> tuple[Tensor, Fixed]:
    """The attack's first iterate, [B, C, H, W] in the dtype of `batch.x`, and what its steps share."""
    settings = parts.attack
    first, centre = pgd.start(
        settings, batch.x, batch.rows, controls.step, seed=parts.seed, eps=controls.eps, kernels=parts.kernels
    )
    weights = parts.precision.constant_weights(parts.model)
    with parts.precision.autocast():
        constant = pgd.clean_log_probabilities(settings, _attacked(parts, weights), centre)
    return first, Fixed(centre, constant, weights)


def attack_step(parts: StepParts, x_adv: Tensor, y: Tensor, fixed: Fixed, controls: Controls) -> Tensor:
    """One step of the attack on the images `x_adv` [B, C, H, W] with labels `y` (int64 [B]): the next iterate."""
    settings, logits_of = parts.attack, _attacked(parts, fixed.weights)
    # Without projection the radius is infinite.
    eps = controls.eps if settings.project else torch.full_like(controls.eps, settings.radius)
    ball, constant = pgd.Ball(fixed.centre, eps, controls.step_size), fixed.clean_log_probabilities
    context = pgd.GradientContext(parts.kernels, parts.zero, parts.precision.attack_factor)
    with parts.precision.autocast():
        x_adv, _ = pgd.ascend(settings, logits_of, x_adv, y, ball, constant, context)
    return x_adv


def _attacked(parts: StepParts, weights: dict[str, Tensor]) -> pgd.Logits:
    """Images [B, C, H, W] to logits [B, K], as the attack sees the net."""
    return lambda x: forward(parts.model, x, "adv", parts.attack.batch_norm, weights)


def descend(parts: StepParts, x: Tensor, x_adv: Tensor, y: Tensor, controls: Controls) -> dict[str, Tensor]:
    """The loss of the images `x` and `x_adv` [B, C, H, W] with labels `y` (int64 [B]), its gradients, and the update of
    all weights in place; returns the method's metrics, scalars on the device."""
    with parts.precision.autocast():
        loss, metrics = parts.method.loss(parts.model, x, x_adv, y)
    gradients = torch.autograd.grad(
        parts.precision.scaled(loss), parts.parameters, allow_unused=True, materialize_grads=True
    )
    gradients = _averaged(parts, list(gradients))
    gradients, keep = parts.precision.unscale(gradients)
    with parts.precision.autocast():  # Muon multiplies matrices
        update_(parts.optimizer, parts.parameters, gradients, parts.momenta, controls.learning_rate, keep)
    return metrics


def _averaged(parts: StepParts, gradients: list[Tensor]) -> list[Tensor]:
    """The mean of each gradient over processes; fp16's factor on the attack travels with them."""
    precision, world, bf16 = parts.precision, parts.world, parts.bf16_gradients
    if world.group is None or precision.attack_factor is None:
        return mean_gradients(gradients, world, bf16=bf16)
    *means, factor = mean_gradients([*gradients, precision.attack_factor], world, bf16=bf16)
    precision.agree(factor)
    return means


EAGER = Stages(start_attack, attack_step, descend)


def train_step(parts: StepParts, batch: Batch, controls: Controls, stages: Stages = EAGER) -> dict[str, Tensor]:
    """Train on one batch, images [B, C, H, W] in float32 (float64 for fp64); nothing in here waits for the device.

    Returns the method's metrics, scalars on the device: `loss` and its terms.
    """
    x, x_adv = attack(parts, batch, controls, stages)
    return stages.descend(parts, x, x_adv, batch.y, controls)


def attack(parts: StepParts, batch: Batch, controls: Controls, stages: Stages = EAGER) -> tuple[Tensor, Tensor]:
    """The clean and the adversarial images of a batch, like `batch.x`, that the method's loss is given."""
    x_adv, fixed = stages.start_attack(parts, batch, controls)
    for _ in range(parts.attack.steps):
        x_adv = stages.attack_step(parts, x_adv, batch.y, fixed, controls)
    # The centre is the clean batch, except for the published code's start, which moves it.
    return fixed.centre, x_adv
