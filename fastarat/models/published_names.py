"""The tensor names of the published AR-AT checkpoints, and ours.

The published net keeps `bn1.clean.weight` and `bn1.adv.weight` as two tensors [C] where ours stacks them
in `bn1.weight` [2, C]; its predictor of an aligned layer is `predictor.<layer>.<i>.<leaf>`, ours
`predictors.<position of the layer>.<i>.<leaf>`.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fastarat.models.split_batch_norm import BRANCHES, SplitBatchNorm2d


def split_layers(model: nn.Module) -> set[str]:
    """Names of the batch-norms that hold both branches."""
    return {
        name for name, layer in model.named_modules() if isinstance(layer, SplitBatchNorm2d) and layer.kind == "split"
    }


def published_model(tensors: Mapping[str, Tensor], layers: set[str]) -> dict[str, Tensor]:
    """Our net's tensors (parameters, buffers or gradients, by our names) under published names, as views."""
    views: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if layer in layers:
            views |= {f"{layer}.{branch}.{leaf}": tensor[i] for i, branch in enumerate(BRANCHES)}
        else:
            views[name] = tensor
    return views


def published_predictors(tensors: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    """Our method's predictor tensors under published names."""
    views: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if head == "predictors":
            position, _, leaf = rest.partition(".")
            views[f"predictor.{layers[int(position)]}.{leaf}"] = tensor
    return views
