"""What a training method is: a loss of a clean and an adversarial batch, and its own trainable parts."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastarat.config.method import MethodSettings
from fastarat.config.model import Branch
from fastarat.models.predictions import are_right

ImageShape = tuple[int, int, int]
"""channels, height, width"""


class Terms(NamedTuple):
    """A loss in its parts: weighted summands (scalars that require grad), and what they were made of."""

    classification: dict[str, Tensor]
    """what ties the net to the labels"""
    invariance: dict[str, Tensor]
    """what ties clean and adversarial images to each other, or to a teacher"""
    clean_logits: Tensor | None
    """of the deployed net [B, K], float32 or wider; None where the method does not look at clean images"""
    adversarial_logits: Tensor | None
    """the same of the adversarial images"""
    metrics: dict[str, Tensor]
    """the method's own means over the batch, to be reported by these names (scalars)"""

    @property
    def summands(self) -> dict[str, Tensor]:
        """All parts of the loss by name, in the order in which they are summed."""
        return {**self.classification, **self.invariance}


class Method(nn.Module, ABC):
    """A method knows the net, and nothing of precision, devices or the loop.

    What it trains in addition to the net (predictors, a teacher) are its parameters, what stays as it is (a frozen
    teacher) parameters that require no grad; what changes between steps (a balance) are its buffers: all of it
    is saved and moved with the method.
    """

    metrics: ClassVar[tuple[str, ...]]
    """Names of the values that `loss` reports, in order."""
    halves: ClassVar[tuple[Branch, ...]] = ("adv",)
    """The halves of a batch that train the deployed net, in the order in which they move shared running statistics."""

    def __init__(self, settings: MethodSettings):
        super().__init__()
        self.settings = settings

    @classmethod
    def for_net(cls, settings: Any, model: nn.Module, image_shape: ImageShape) -> Self:
        """The method for `model`. Raises `UserError` if it cannot train it."""
        return cls(settings)

    @abstractmethod
    def terms(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        """The loss in its parts, by one forward of each image through the net.

        `x`, `x_adv`: [B, C, H, W] in [0, 1]; `y`: int64 [B].
        """

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the batch (scalar, float32 or wider) and its metrics (scalars, detached).

        Arguments as of `terms`.
        """
        terms = self.terms(model, x, x_adv, y)
        loss = torch.stack(list(terms.summands.values())).sum()
        found = {"loss": loss, **terms.metrics}
        if terms.adversarial_logits is not None:
            found["adversarial_accuracy"] = accuracy(terms.adversarial_logits, y)
        if terms.clean_logits is not None:
            found["clean_accuracy"] = accuracy(terms.clean_logits, y)
        return loss, {name: found[name].detach() for name in self.metrics}

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss's cross-entropy: mean over the batch, labels smoothed as the settings say."""
        return F.cross_entropy(logits, y, label_smoothing=self.settings.label_smoothing)

    def draw_by(self, seed: int, first_row: int) -> None:
        """Take what noise of the method's own is a function of, beside the step: the run's seed, and the place in a
        batch of this process's first image. Once, before the first step; without it the seed is 0 and the place 0."""

    @property
    def num_balance_images(self) -> int:
        """How many training images `begin_epoch` wants measured; 0 for none."""
        return 0

    def begin_training(self, model: nn.Module, teacher: nn.Module) -> None:
        """Take a trained plain net of the kind of `model`: once, before the first step of a new run.

        Raises `NotImplementedError` where the method starts from none.
        """
        raise NotImplementedError(f"{type(self).__name__} starts from no trained net")

    def begin_epoch(self, clean_accuracy: Tensor) -> None:
        """Take the clean branch's accuracy on training images (scalar in [0, 1]), measured before the epoch."""


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of rows that are predicted right: scalar, float32."""
    return are_right(logits.detach(), y).float().mean()


def divergence(clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """KL(p(x) ‖ p(x')) of each row, [B]: summed over classes, no gradient stopped."""
    clean, adversarial = clean_logits.log_softmax(1), adversarial_logits.log_softmax(1)
    return F.kl_div(adversarial, clean, reduction="none", log_target=True).sum(1)
