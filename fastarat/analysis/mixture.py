"""The mixture problem: how far apart the clean and the adversarial batch statistics of a layer lie.

A batch-norm that clean and adversarial images share has to serve both distributions (Xie et al., 2020; AR-AT, section
3). For each channel of a batch-norm's input, both halves of a batch are taken as Gaussians over rows and places; their
2-Wasserstein distance is sqrt((mean - mean')^2 + (deviation - deviation')^2). It is measured in pooled deviations,
sqrt((variance + variance') / 2 + the layer's eps), and averaged over channels: 0 means the same statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastarat.analysis.layers import Values
from fastarat.models.split_batch_norm import SplitBatchNorm2d

DEFINITIONS = {
    "mixture_distance": "per batch-norm, 2-Wasserstein distance of the Gaussians of the clean and of the adversarial "
    "half of its input, per channel, in pooled standard deviations, mean over channels; on training batches in the "
    "pass that the method trains with"
}


@contextmanager
def distances(model: nn.Module) -> Iterator[Values]:
    """Fills in the distance of every batch-norm that a forward over the rows [clean; adversarial] goes through."""
    found: Values = {}

    def record(name: str, eps: float, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        clean, adversarial = inputs[0].detach().chunk(2)
        found[name] = distance(clean, adversarial, eps)

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, SplitBatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(partial(record, name, layer.eps)) for name, layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def distance(clean: Tensor, adversarial: Tensor, eps: float = 1e-5) -> float:
    """The distance of the statistics of two [B, C, H, W]: a number of pooled deviations, 0 or more."""
    (variance, mean), (other_variance, other_mean) = (
        torch.var_mean(half.double(), dim=[axis for axis in range(half.dim()) if axis != 1], correction=0)
        for half in (clean, adversarial)
    )
    apart = (mean - other_mean).square() + (variance.sqrt() - other_variance.sqrt()).square()
    return float((apart / ((variance + other_variance) / 2 + eps)).sqrt().mean())
