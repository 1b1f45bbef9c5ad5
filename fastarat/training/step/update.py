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
    """Update `parameters` and `momenta` in place by `gradients`, all three of the same shapes and dtypes.

    `learning_rate`: the step's, a scalar tensor on their device. `keep`: see `sgd_`.
    """
    momentum, weight_decay = settings.momentum, settings.weight_decay
    weights = list(zip(parameters, gradients, momenta, strict=True))
    convolutions = [weight for weight in weights if settings.name == "muon" and weight[0].dim() == 4]
    others = [weight for weight in weights if settings.name != "muon" or weight[0].dim() != 4]
    if others:
        sgd_(*_columns(others), learning_rate, momentum, weight_decay, keep)
    if convolutions:
        muon_(*_columns(convolutions), learning_rate * settings.muon_factor, momentum, weight_decay, keep)


def _columns(weights: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Parameters, gradients and momenta, each in a list."""
    parameters, gradients, momenta = zip(*weights, strict=True)
    return list(parameters), list(gradients), list(momenta)
