"""Methods by their settings: one line each."""

import torch
from torch import nn

from fastarat.common.errors import UserError
from fastarat.config.method import (
    ARATConfig,
    ARRESTConfig,
    LBGATConfig,
    MARTConfig,
    MethodConfig,
    StandardConfig,
    TRADESConfig,
)
from fastarat.methods.arat import ARAT
from fastarat.methods.arrest import ARREST
from fastarat.methods.at import AT
from fastarat.methods.lbgat import LBGAT
from fastarat.methods.mart import MART
from fastarat.methods.method import Method
from fastarat.methods.standard import Standard
from fastarat.methods.trades import TRADES
from fastarat.models.features import feature_widths, tap_layers
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import forward, forward_context

ImageShape = tuple[int, int, int]


def build_method(settings: MethodConfig, model: nn.Module, image_shape: ImageShape) -> Method:
    """The method for a net that takes images [C, H, W], which learns here what the method asks of its forwards."""
    method = _build(settings, model, image_shape)
    context = forward_context(model)
    if context is not None and len(method.halves) == 2:
        context.order = method.halves  # type: ignore[assignment]
    return method


def _build(settings: MethodConfig, model: nn.Module, image_shape: ImageShape) -> Method:
    if isinstance(settings, ARATConfig):
        return _arat(settings, model, image_shape)
    if isinstance(settings, TRADESConfig):
        return TRADES(settings)
    if isinstance(settings, MARTConfig):
        return MART(settings)
    if isinstance(settings, LBGATConfig):
        num_classes = _num_classes(model, image_shape)
        return LBGAT(settings, build_model(settings.teacher, num_classes, image_shape[0], settings.batch_norm))
    if isinstance(settings, ARRESTConfig):
        return _arrest(settings, model)
    return Standard(settings) if isinstance(settings, StandardConfig) else AT(settings)


def _arat(settings: ARATConfig, model: nn.Module, image_shape: ImageShape) -> ARAT:
    layers: tuple[str, ...] = settings.layers or getattr(model, "aligned_layers", ())
    if not layers:
        raise UserError("this net has no aligned layers of its own: name some with --method.layers")
    tap_layers(model, layers)
    return ARAT(settings, feature_widths(model, image_shape, layers))


def _arrest(settings: ARRESTConfig, model: nn.Module) -> ARREST:
    layer = settings.layer or getattr(model, "pooled_layer", "")
    if not layer:
        raise UserError("this net does not name the layer before its last: name it with --method.layer")
    tap_layers(model, (layer,))
    return ARREST(settings, model, layer)


@torch.no_grad()
def _num_classes(model: nn.Module, image_shape: ImageShape) -> int:
    parameter = next(model.parameters())
    x = torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
    return forward(model, x).shape[1]
