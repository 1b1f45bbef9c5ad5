"""MART (Wang et al., ICLR 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples").

    loss = CE(f(x'), y) - mean log(1.0001 - p_k(x') + 1e-12)
           + beta * mean[ KL(p(x) ‖ p(x')) * (1.0000001 - p_y(x)) ]

k is the likeliest wrong class of x'. The small numbers are those of its authors' code, and keep the logarithm and the
weight off zero. Labels are smoothed in the first summand alone: the others are no cross-entropies of the label.
"""

import torch
from torch import Tensor, nn

from fastarat.config.method import MARTConfig
from fastarat.methods.method import Method, Terms, divergence
from fastarat.models.predictions import widened
from fastarat.models.split_batch_norm import forward


def wrong_class_penalty(logits: Tensor, y: Tensor) -> Tensor:
    """-log(1.0001 - p_k + 1e-12) of each row [B], k being its likeliest class other than `y` (int64 [B])."""
    p = logits.softmax(1)
    likeliest_wrong = p.detach().scatter(1, y[:, None], -1.0).argmax(1, keepdim=True)
    return -torch.log(1.0001 - p.gather(1, likeliest_wrong)[:, 0] + 1e-12)


class MART(Method):
    """Both halves pass one net, each normalised by its own statistics: clean, then adversarial."""

    metrics = ("loss", "boosted_cross_entropy", "weighted_divergence", "adversarial_accuracy", "clean_accuracy")
    halves = ("clean", "adv")
    settings: MARTConfig

    def terms(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        """See `Method.terms`."""
        clean, adversarial = widened(forward(model, torch.cat([x, x_adv]), "both", "train")).chunk(2)
        cross_entropy = self.cross_entropy(adversarial, y)
        penalty = wrong_class_penalty(adversarial, y).mean()
        p_true = clean.softmax(1).gather(1, y[:, None])[:, 0]
        kl = (divergence(clean, adversarial) * (1.0000001 - p_true)).mean()
        return Terms(
            {"ce_adv": cross_entropy, "wrong_class": penalty},
            {"kl": self.settings.beta * kl},
            clean,
            adversarial,
            {"boosted_cross_entropy": cross_entropy + penalty, "weighted_divergence": kl},
        )
