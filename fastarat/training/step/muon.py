"""Muon (Jordan et al., 2024): momentum whose updates are orthogonal matrices, for the weights of convolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""of the quintic that each iteration applies to the singular values (Jordan et al., 2024)"""
ITERATIONS = 5
TINY = 1e-7
"""least Frobenius norm to divide by"""


@torch.no_grad()
def muon_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    learning_rate: Tensor,
    momentum: float,
    weight_decay: float,
    keep: Tensor | None = None,
) -> None:
    """m <- momentum m + g;  p <- p - learning_rate (s orthogonal(g + momentum m) + weight_decay p), in place, with
    s = max(1, rows / columns)^0.5 (torch.optim.Muon's rule).

    A parameter [C_out, C_in, H, W] is a matrix of C_out rows. `learning_rate` and `keep` are scalar tensors; where
    `keep` is 0 nothing changes, as in `sgd_`.
    """
    gradients, momenta = list(gradients), list(momenta)
    if keep is None:
        torch._foreach_mul_(momenta, momentum)
    else:
        gradients = list(torch._foreach_mul(gradients, keep))
        torch._foreach_mul_(momenta, momentum * keep + (1 - keep))
        learning_rate = learning_rate * keep
    torch._foreach_add_(momenta, gradients)
    ahead = torch._foreach_add(gradients, momenta, alpha=momentum)
    # Channels-last weights are such matrices as they lie; the order of columns changes no result.
    matrices = orthogonal([update.permute(0, 2, 3, 1).flatten(1) for update in ahead])
    steps = torch._foreach_mul(matrices, [max(1.0, m.shape[0] / m.shape[1]) ** 0.5 for m in matrices])
    updates = [
        step.to(p.dtype).view(p.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        for step, p in zip(steps, parameters, strict=True)
    ]
    updates = torch._foreach_add(updates, list(parameters), alpha=weight_decay)
    torch._foreach_sub_(list(parameters), torch._foreach_mul(updates, learning_rate))


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix [n, m] with its singular values brought near to 1 (those above 0.2 % of its norm to 0.6 to 1.3),
    by Newton and Schulz's iteration, in the dtype of products where autocast is on.

    Few launches for all: those with equally many rows, after the wider side is made the columns, go together, and
    zero columns, which change nothing, make them equally wide.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    results = list(wide)
    for rows in sorted({len(matrix) for matrix in wide}):
        places = [i for i, matrix in enumerate(wide) if len(matrix) == rows]
        width = max(wide[i].shape[1] for i in places)
        stack = _iterated(torch.stack([pad(wide[i], (0, width - wide[i].shape[1])) for i in places]))
        for i, result in zip(places, stack, strict=True):
            results[i] = result[:, : wide[i].shape[1]]
    turned = (r if m.shape[0] <= m.shape[1] else r.T for r, m in zip(results, matrices, strict=True))
    return [result.contiguous() for result in turned]


def _iterated(x: Tensor) -> Tensor:
    """The iteration on a stack of matrices [B, n, m], n <= m."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    for _ in range(ITERATIONS):
        products = x @ x.mT
        x = torch.baddbmm(x.to(products.dtype), torch.baddbmm(products, products, products, beta=b, alpha=c), x, beta=a)
    return x
