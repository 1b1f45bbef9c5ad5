"""What logits say of a class: which predictions are right, and which are none.

A prediction is the class of the largest logit; of finite logits that are equal the first one's, as argmax has it and
so the standard evaluations. A single logit of +inf is the largest. Logits with a NaN, or whose largest are several
infinities (all overflowed, or every class ruled out), predict nothing: they are right for no label.
"""

import torch
from torch import Tensor

# Of nets of the digits' recipes, times 1 to 0.03, at eps 0.18, PGD-20 left -2 to 3 points more than cw at spans over 5,
# 6 to 10 at 2 to 5, 8 to 15 at 0.5 to 2, and up to 17 below. Honest nets span 2.5 (digits, TRADES and MART, 3 epochs)
# and 2.9 (TRADES, cifar10-tiny); one of MART, cifar10-tiny, in a quarter of its training, 1.5, where it left 3 more.
SMALL_SPAN = 2.0
"""below which attacks by cross-entropy leave too much: all probabilities are alike, and its gradient pushes all wrong
classes, not the one that is near; of two classes one is wrong, and it does not matter"""


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


def spans(logits: Tensor) -> Tensor:
    """The largest logit less the smallest, of logits [N, K]: [N], in float32 or wider."""
    logits = widened(logits)
    return logits.amax(1) - logits.amin(1)


def predictions(logits: Tensor) -> Tensor:
    """The classes that logits [N, K] predict: int64 [N], -1 for those that predict nothing."""
    return logits.argmax(1).masked_fill(are_undefined(logits), -1)


def are_right(logits: Tensor, y: Tensor) -> Tensor:
    """Which of the logits [N, K] predict their class of `y` (int64 [N]): bool [N]."""
    return (logits.argmax(1) == y) & (margins(logits, y) >= 0)  # which a NaN is not


def are_undefined(logits: Tensor) -> Tensor:
    """Which of the logits [N, K] predict nothing: bool [N]."""
    return margins(logits, logits.argmax(1)).isnan()
