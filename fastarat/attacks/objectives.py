"""What attacks raise, for logits [N, K] and labels [N] (int64), and which of its gradients lead anywhere.

PGD's objectives are summed over the batch, so that an image's gradient does not shrink with its company; their
`clean_log_probabilities` [N, K] are those of the clean images. APGD's are losses [N], one a point, since it compares
them.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastarat.config.attack import Objective
from fastarat.models.predictions import margins, widened

PointLoss = Literal["cross-entropy", "dlr", "targeted-dlr"]

# What the standard adds to a denominator that may be 0.
TINY = 1e-12


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """sum of -log p_y (Madry et al., 2018)."""
    return F.cross_entropy(logits, y, reduction="sum")


def kl(logits: Tensor, clean_log_probabilities: Tensor) -> Tensor:
    """sum of KL(p(x) ‖ p(x')), the clean side constant (Zhang et al., 2019)."""
    return F.kl_div(logits.log_softmax(1), clean_log_probabilities, reduction="sum", log_target=True)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """sum of max_{j != y} z_j - z_y (Carlini and Wagner, 2017)."""
    return -margins(logits, y).sum()


def objective(name: Objective, logits: Tensor, y: Tensor, clean_log_probabilities: Tensor | None) -> Tensor:
    """The objective called `name`, in float32 or wider."""
    logits = widened(logits)
    if name == "kl":
        assert clean_log_probabilities is not None, "the KL objective needs the clean log-probabilities"
        return kl(logits, clean_log_probabilities)
    return cross_entropy(logits, y) if name == "cross-entropy" else margin(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3)), [N]: the difference of logits ratio (Croce and Hein, 2020).

    z_(k) is the k-th largest of at least three logits. A factor on the logits changes nothing, where
    cross-entropy would lose its gradient in float32.
    """
    largest, classes = logits.topk(3)
    best_wrong = torch.where(classes[:, 0] == y, largest[:, 1], largest[:, 0])
    return (best_wrong - _of_class(logits, y)) / (largest[:, 0] - largest[:, 2] + TINY)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), [N], for classes `target` (int64 [N]) of at least four."""
    largest = logits.topk(4).values
    spread = largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3])
    return (_of_class(logits, target) - _of_class(logits, y)) / (spread + TINY)


def point_losses(name: PointLoss, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The loss called `name` of each point, [N], in float32 or wider; only the targeted one looks at `target`."""
    logits = widened(logits)
    if name == "cross-entropy":
        return F.cross_entropy(logits, y, reduction="none")
    return dlr(logits, y) if name == "dlr" else targeted_dlr(logits, y, target)


def has_direction(gradient: Tensor, above: float = 0) -> Tensor:
    """Which of the gradients [B, ...] have an entry larger than `above` to follow: bool [B]. NaN is none."""
    return (gradient.abs() > above).flatten(1).any(1)


def is_known(gradient: Tensor) -> Tensor:
    """Which of the gradients [B, ...] have no NaN: bool [B]. What is finite of others is followed, but a search that
    met no better one has not searched."""
    return ~gradient.isnan().flatten(1).any(1)


def is_lost(gradient: Tensor) -> Tensor:
    """Which of the gradients [B, ...] lead nowhere because they are NaN: bool [B].

    An attack goes on from another point then. A gradient of exactly zero is one that the standard attacks know: they
    stay where they are.
    """
    return ~is_known(gradient) & ~has_direction(gradient)


def moved_on(shift: Tensor) -> Tensor:
    """Another shift of the same length: that of each image [B, C, H, W] with its pixels moved on by one place."""
    return shift.flatten(1).roll(1, 1).view_as(shift)


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]
