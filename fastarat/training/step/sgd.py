"""SGD with momentum as a function, so that it can stand inside a compiled step."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def sgd_(
    parameters: Sequence[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    learning_rate: Tensor,
    momentum: float,
    weight_decay: float,
    keep: Tensor | None = None,
) -> None:
    """m <- momentum m + g + weight_decay p;  p <- p - learning_rate m, in place (torch.optim.SGD's rule).

    `learning_rate` and `keep` are scalar tensors; where `keep` is 0 nothing changes (a step skipped
    because fp16 gradients overflowed), and the host need not know.
    """
    gradients = list(torch._foreach_add(gradients, list(parameters), alpha=weight_decay))
    if keep is None:
        torch._foreach_mul_(momenta, momentum)
    else:
        torch._foreach_mul_(gradients, keep)
        torch._foreach_mul_(momenta, momentum * keep + (1 - keep))
        learning_rate = learning_rate * keep
    torch._foreach_add_(momenta, gradients)
    torch._foreach_sub_(list(parameters), torch._foreach_mul(momenta, learning_rate))
