"""Features of clean and adversarial images: how alike they are, and whether they are still spread out.

Features are a layer's output after ReLU and global average pooling, [N, d]; `DEFINITIONS` has the measures. A cosine of
1 means that the attack moves nothing, or that all features are the same: so it is read beside their spread (Chen and
He, 2021).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastarat.analysis.layers import Values, is_split
from fastarat.config.model import Branch
from fastarat.models.batch_norm import batch_norm_mode
from fastarat.models.split_batch_norm import forward_with_features

DEFINITIONS = {
    "feature_cosine": "per layer, cosine of the pooled features of a test image and of its adversarial image, both by "
    "the deployed branch with running statistics, mean over images",
    "branch_cosine": "the same with the clean image's features by the clean branch; null where the net has one branch",
    "spread": "per layer, deviation over images of the normalised pooled features of clean test images by the deployed "
    "branch, times sqrt(width): 1 isotropic, 0 collapsed",
    "spread_adversarial": "the same for adversarial images",
}


def measure_features(
    model: nn.Module, x: Tensor, x_adv: Tensor, layers: Sequence[str], *, batch: int = 500
) -> dict[str, Values | None]:
    """Each measure of `DEFINITIONS` by layer, of clean and adversarial images [N, C, H, W] with running statistics. The
    net is left as it was."""
    clean = features(model, x, "adv", layers, batch)
    adversarial = features(model, x_adv, "adv", layers, batch)
    branches: Values | None = None
    if any(map(is_split, model.modules())):
        by_clean = features(model, x, "clean", layers, batch)
        branches = {layer: similarity(by_clean[layer], adversarial[layer]) for layer in layers}
    return {
        "feature_cosine": {layer: similarity(clean[layer], adversarial[layer]) for layer in layers},
        "branch_cosine": branches,
        "spread": {layer: spread(clean[layer]) for layer in layers},
        "spread_adversarial": {layer: spread(adversarial[layer]) for layer in layers},
    }


def features(model: nn.Module, x: Tensor, branch: Branch, layers: Sequence[str], batch: int) -> dict[str, Tensor]:
    """Pooled features [N, d] of each layer, in float64."""
    with torch.no_grad(), batch_norm_mode(model, "eval"):
        parts = [forward_with_features(model, rows, branch, "eval")[1] for rows in x.split(batch)]
    return {layer: torch.cat([part[layer] for part in parts]).double() for layer in layers}


def similarity(clean: Tensor, adversarial: Tensor) -> float:
    """Mean cosine of the rows of two [N, d]; a row of zeros counts as 0."""
    return float(F.cosine_similarity(clean, adversarial, dim=1).mean())


def spread(features: Tensor) -> float:
    """The deviation of normalised features [N, d], times sqrt(d)."""
    directions = F.normalize(features, dim=1)
    return float(directions.std(dim=0, correction=0).mean() * directions.shape[1] ** 0.5)
