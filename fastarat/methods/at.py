"""AT: adversarial training (Madry et al., ICLR 2018); with one step of attack also FGSM-RS and N-FGSM.

    loss = CE(f(x'), y)

FGSM-RS (Wong et al., ICLR 2020) and N-FGSM (de Jorge et al., NeurIPS 2022) differ from it in the attack alone.
"""

from torch import Tensor, nn

from fastarat.methods.method import Method, Terms
from fastarat.models.predictions import widened
from fastarat.models.split_batch_norm import forward


class AT(Method):
    """CE(f(x'), y); the clean batch is not used."""

    metrics = ("loss", "adversarial_accuracy")

    def terms(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        """See `Method.terms`."""
        logits = widened(forward(model, x_adv, "adv", "train"))
        return Terms({"ce_adv": self.cross_entropy(logits, y)}, {}, None, logits, {})
