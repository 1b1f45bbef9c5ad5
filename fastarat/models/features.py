"""Features of a net's layers, taken on their way."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastarat.common.errors import UserError
from fastarat.models.split_batch_norm import ForwardContext, SplitBatchNorm2d, forward_context, forward_with_features


class Recording(nn.Module):
    """Mixed in before a layer's own class: its forward records what the original returns."""

    original: ClassVar[type[nn.Module]]
    tap_context: ForwardContext
    tap_names: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the original; where features are recorded, its output [N, d, …] is pooled to [N, d]."""
        out = self.original.forward(self, *args, **kwargs)
        if self.tap_context.record:
            self.tap_context.features |= dict.fromkeys(self.tap_names, self.tap_context.kernels.pooled_features(out))
            return out.clone()  # as in SplitBatchNorm2d
        return out


def tap_layers(model: nn.Module, names: tuple[str, ...]) -> None:
    """Record the pooled outputs of these layers in every `forward_with_features`.

    A batch-norm records its own output. Any other module gets a class of its own, once and here, whose
    forward records what the original returns: no hooks in the hot path, no change to parameter names.
    Raises `UserError` for a layer that the net does not have, or a net without split batch-norms.
    """
    context = forward_context(model)
    if context is None:
        raise UserError("only a net with split batch-norms records features: convert_to_split_batch_norm makes one")
    modules = dict(model.named_modules())
    layer_of = getattr(model, "layer_of", lambda name: name)
    for name in names:
        layer: Any = modules.get(layer_of(name))
        if layer is None:
            aligned = getattr(model, "aligned_layers", ())
            kind, there = ("aligned layers", aligned) if aligned else ("layers", filter(None, modules))
            raise UserError(f"unknown layer {name!r}: this net's {kind} are {', '.join(there)}")
        if isinstance(layer, SplitBatchNorm2d):
            layer.taps = (*layer.taps, name)
            continue
        if not isinstance(layer, Recording):
            cls = type(layer)
            layer.__class__ = type(f"Recording{cls.__name__}", (Recording, cls), {"original": cls})
            layer.tap_context, layer.tap_names = context, ()
        layer.tap_names = (*layer.tap_names, name)


def feature_widths(model: nn.Module, image_shape: tuple[int, int, int], names: tuple[str, ...]) -> dict[str, int]:
    """How many features each tapped layer gives for images [C, H, W], found by one forward."""
    parameter = next(model.parameters())
    x = torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        _, features = forward_with_features(model, x, "adv", "eval")
    return {name: features[name].shape[1] for name in names}
