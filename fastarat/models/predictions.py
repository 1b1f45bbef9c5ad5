"""What logits say of a class: which predictions are right, and which are none.

A prediction is the class of the largest logit; of finite logits that are equal the first one's, as argmax has it and
so the standard evaluations. A single logit of +inf is the largest. Logits with a NaN, or whose largest are several
infinities (all overflowed, or every class ruled out), predict nothing: they are right for no label.
"""

import torch
from torch import Tensor


def widened(logits: Tensor) -> Tensor:
    """Logits in float32, or float64 where they are: no loss or margin is taken in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j for logits [N, K] and classes `y` (int64 [N]): [N], in float32 or wider.

    NaN where the logits hold a NaN, or where both terms are the same infinity.
    """
    logits = widened(logits)
    own = torch.arange(logits.shape[1], device=logits.device) == y[:, None]
    return logits.gather(1, y[:, None]).squeeze(1) - logits.masked_fill(own, -torch.inf).amax(1)


def predictions(logits: Tensor) -> Tensor:
    """The classes that logits [N, K] predict: int64 [N], -1 for those that predict nothing."""
    return logits.argmax(1).masked_fill(are_undefined(logits), -1)


def are_right(logits: Tensor, y: Tensor) -> Tensor:
    """Which of the logits [N, K] predict their class of `y` (int64 [N]): bool [N]."""
    return (logits.argmax(1) == y) & (margins(logits, y) >= 0)  # which a NaN is not


def are_undefined(logits: Tensor) -> Tensor:
    """Which of the logits [N, K] predict nothing: bool [N]."""
    return margins(logits, logits.argmax(1)).isnan()
