"""AT: adversarial training (Madry et al., ICLR 2018)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastarat.methods.method import Method, accuracy, widened
from fastarat.models.split_batch_norm import forward


class AT(Method):
    """CE(f(x'), y)."""

    metrics = ("loss", "adversarial_accuracy")

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.loss`; the clean batch is not used."""
        logits = widened(forward(model, x_adv, "adv", "train"))
        loss = F.cross_entropy(logits, y)
        return loss, {"loss": loss.detach(), "adversarial_accuracy": accuracy(logits, y)}
