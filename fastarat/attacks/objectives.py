"""What an attack raises, summed over the batch so that an image's gradient does not shrink with its company.

Each takes logits [N, K], labels [N] and `reference`, the log-probabilities [N, K] of the clean images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastarat.attacks.settings import Objective


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """sum of -log p_y (Madry et al., 2018)."""
    return F.cross_entropy(logits, y, reduction="sum")


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """sum of KL(p(x) ‖ p(x')), the clean side constant (Zhang et al., 2019)."""
    return F.kl_div(logits.log_softmax(1), reference, reduction="sum", log_target=True)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """sum of max_{j != y} z_j - z_y (Carlini and Wagner, 2017)."""
    true = F.one_hot(y, logits.shape[1]).bool()
    best_wrong = logits.masked_fill(true, -torch.inf).amax(1)
    return (best_wrong - logits.masked_fill(~true, 0).sum(1)).sum()


def objective(name: Objective, logits: Tensor, y: Tensor, reference: Tensor | None) -> Tensor:
    """The objective called `name`, in float32 or wider."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if name == "kl":
        assert reference is not None, "the KL objective needs the clean log-probabilities"
        return kl(logits, reference)
    return cross_entropy(logits, y) if name == "cross-entropy" else margin(logits, y)
