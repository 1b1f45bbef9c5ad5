"""What a training method is: a loss of a clean and an adversarial batch, and its own trainable parts."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn


class Method(nn.Module, ABC):
    """A method knows the net, and nothing of precision, devices or the loop.

    What it trains besides the net (predictors, a teacher) are its parameters; what changes between
    steps (a balance) are its buffers, so that both are saved and moved with it.
    """

    metrics: ClassVar[tuple[str, ...]]
    """Names of the values that `loss` reports, in order."""

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the batch (scalar, float32 or wider) and its metrics (scalars, detached).

        `x`, `x_adv`: [B, C, H, W] in [0, 1]; `y`: int64 [B].
        """

    @property
    def num_balance_images(self) -> int:
        """How many training images `begin_epoch` wants measured; 0 for none."""
        return 0

    def begin_epoch(self, clean_accuracy: Tensor) -> None:
        """Take the clean branch's accuracy on training images (scalar in [0, 1]), measured before the epoch."""


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of rows whose largest logit is the label's: scalar, float32."""
    return (logits.detach().argmax(1) == y).float().mean()


def widened(logits: Tensor) -> Tensor:
    """Logits in float32, or float64 where they are: losses are never taken in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()
