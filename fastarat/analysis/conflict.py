"""Gradient conflict: whether two losses pull a layer's weights the same way (AR-AT, Waseda et al., ICLR 2025).

For each layer, the cosine between the gradients of two scalar losses of one training batch by all parameters of the
layer: 1 they agree, 0 they do not meet, below 0 a step down one raises the other. `DEFINITIONS` has the three pairs
that are measured: the method's own terms, each with its weight; what a plain invariance would do to this net, the same
for every method; and the clean against the adversarial loss, each by its own branch where the net has two.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastarat.analysis.layers import Values

DEFINITIONS = {
    "gradient_conflict": "cosine, per layer, between the gradients of the method's summed invariance terms and of its "
    "summed classification terms on training batches; below 0 they conflict; null where either is zero, or where the "
    "method has no invariance terms, or its classification terms do not train this net (LBGAT's train the teacher)",
    "naive_conflict": "the same for a plain invariance (1 - cosine of pooled clean and adversarial features, mean "
    "over the aligned layers, no predictor, no stop-gradient) against the sum of clean and adversarial cross-entropy",
    "clean_adversarial_conflict": "the same for the clean against the adversarial cross-entropy; null at batch-norms "
    "that have a parameter set for each branch",
}


def conflict(first: Tensor, second: Tensor, groups: Mapping[str, Sequence[Tensor]]) -> Values:
    """The cosine of two scalar losses' gradients for each group of parameters; None where a gradient is zero.

    The graphs of both losses are kept; nothing is written to the parameters.
    """
    gradients = (gradient(loss, groups) for loss in (first, second))
    return {layer: cosine(a, b) for layer, a, b in zip(groups, *gradients, strict=True)}


def gradient(loss: Tensor, groups: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
    """The gradient by each group, as one float64 vector; zeros where the loss does not depend on it."""
    parameters = [parameter for group in groups.values() for parameter in group]
    if loss.requires_grad:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    else:
        found = [torch.zeros_like(parameter) for parameter in parameters]
    each = iter(found)
    return [torch.cat([next(each).flatten().double() for _ in group]) for group in groups.values()]


def cosine(a: Tensor, b: Tensor) -> float | None:
    """The cosine of two vectors; None if either is zero or not finite."""
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if 0 < lengths < float("inf") else None


def naive_invariance(features: Mapping[str, Tensor], layers: Sequence[str]) -> Tensor:
    """1 - cosine of the clean and adversarial halves of pooled features [2B, d], mean over images and layers."""
    halves = (features[layer].chunk(2) for layer in layers)
    return torch.stack([1 - F.cosine_similarity(clean, moved, dim=1).mean() for clean, moved in halves]).mean()
