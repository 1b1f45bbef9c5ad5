"""TRADES (Zhang et al., ICML 2019, "Theoretically Principled Trade-off between Robustness and Accuracy").

    loss = CE(f(x), y) + beta * mean over images of KL(p(x) ‖ p(x'))

The KL is summed over classes; its gradient flows through both sides. The attack raises the same KL.
"""

import torch
from torch import Tensor, nn

from fastarat.config.method import TRADESConfig
from fastarat.methods.method import Method, Terms, divergence
from fastarat.models.predictions import widened
from fastarat.models.split_batch_norm import forward


class TRADES(Method):
    """Both halves pass one net, each normalised by its own statistics: clean, then adversarial."""

    metrics = ("loss", "clean_cross_entropy", "divergence", "adversarial_accuracy", "clean_accuracy")
    halves = ("clean", "adv")
    settings: TRADESConfig

    def terms(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        """See `Method.terms`."""
        clean, adversarial = widened(forward(model, torch.cat([x, x_adv]), "both", "train")).chunk(2)
        cross_entropy, kl = self.cross_entropy(clean, y), divergence(clean, adversarial).mean()
        metrics = {"clean_cross_entropy": cross_entropy, "divergence": kl}
        return Terms({"ce_clean": cross_entropy}, {"kl": self.settings.beta * kl}, clean, adversarial, metrics)
