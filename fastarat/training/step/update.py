"""The update of all weights: SGD, or Muon for the convolutions and SGD for the rest."""

from collections.abc import Sequence

from torch import Tensor

from fastarat.config.training import OptimizerConfig
from fastarat.training.step.muon import muon_
from fastarat.training.step.sgd import sgd_


def update_(
    settings: OptimizerConfig,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    learning_rate: Tensor,
    keep: Tensor | None = None,
) -> None:
    """Update `parameters` and `momenta` in place by `gradients`; `learning_rate` is the step's, a scalar tensor.

    `keep`: see `sgd_`.
    """
    weights = list(zip(parameters, gradients, momenta, strict=True))
    convolutions = [weight for weight in weights if settings.name == "muon" and weight[0].dim() == 4]
    others = [weight for weight in weights if settings.name != "muon" or weight[0].dim() != 4]
    ways = ((sgd_, learning_rate, others), (muon_, learning_rate * settings.muon_factor, convolutions))
    for update, rate, chosen in ways:
        if chosen:
            own, their_gradients, their_momenta = (list(tensors) for tensors in zip(*chosen, strict=True))
            update(own, their_gradients, their_momenta, rate, settings.momentum, settings.weight_decay, keep)
