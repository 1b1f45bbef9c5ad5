"""LBGAT (Cui et al., ICCV 2021, "Learnable Boundary Guided Adversarial Training").

    loss = MSE(f(x'), t(x)) + CE(t(x), y) + beta * mean over images of KL(p(x) ‖ p(x'))

t is a teacher for clean images, trained along with f by the same optimiser; the MSE is the mean over all logits, and
its gradient flows into both nets. p is the net's own prediction, which the attack moves by the same KL.
"""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastarat.config.method import LBGATConfig
from fastarat.methods.method import ImageShape, Method, Terms, accuracy, divergence
from fastarat.models.predictions import widened
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import forward


class LBGAT(Method):
    """Both halves pass one net, each normalised by its own statistics: adversarial, then clean."""

    metrics = (
        "loss",
        "guidance",
        "teacher_cross_entropy",
        "divergence",
        "teacher_accuracy",
        "adversarial_accuracy",
        "clean_accuracy",
    )
    halves = ("adv", "clean")
    settings: LBGATConfig

    def __init__(self, settings: LBGATConfig, teacher: nn.Module):
        super().__init__(settings)
        self.teacher = teacher

    @classmethod
    def for_net(cls, settings: LBGATConfig, model: nn.Module, image_shape: ImageShape) -> Self:
        """See `Method.for_net`: builds the teacher, for the net's classes."""
        like = next(model.parameters())
        x = torch.zeros(1, *image_shape, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            num_classes = forward(model, x).shape[1]
        return cls(settings, build_model(settings.teacher, num_classes, image_shape[0], settings.batch_norm))

    def terms(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        """See `Method.terms`."""
        clean, adversarial = widened(forward(model, torch.cat([x, x_adv]), "both", "train")).chunk(2)
        taught = widened(forward(self.teacher, x, "adv", "train"))
        guidance, kl = F.mse_loss(adversarial, taught), divergence(clean, adversarial).mean()
        cross_entropy = self.cross_entropy(taught, y)
        return Terms(
            {"ce_teacher": cross_entropy},
            {"mse": guidance, "kl": self.settings.beta * kl},
            clean,
            adversarial,
            {
                "guidance": guidance,
                "teacher_cross_entropy": cross_entropy,
                "divergence": kl,
                "teacher_accuracy": accuracy(taught, y),
            },
        )
