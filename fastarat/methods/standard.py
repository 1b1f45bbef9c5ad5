"""Standard training, on clean images alone: the baseline of accuracy, and ARREST's teacher.

loss = CE(f(x), y)
"""

from torch import Tensor, nn

from fastarat.methods.method import Method, Terms
from fastarat.models.predictions import widened
from fastarat.models.split_batch_norm import forward


class Standard(Method):
    """CE(f(x), y); the adversarial batch is not used, so its recipes attack nothing."""

    metrics = ("loss", "clean_accuracy")
    halves = ("clean",)

    def terms(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        """See `Method.terms`. The images pass by the deployed branch."""
        logits = widened(forward(model, x, "adv", "train"))
        return Terms({"ce_clean": self.cross_entropy(logits, y)}, {}, logits, None, {})
