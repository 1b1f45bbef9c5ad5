"""Methods by their settings: one line each."""

from torch import nn

from fastarat.config.method import (
    ARATConfig,
    ARRESTConfig,
    ATConfig,
    LBGATConfig,
    MARTConfig,
    MethodSettings,
    StandardConfig,
    TRADESConfig,
)
from fastarat.methods.arat import ARAT
from fastarat.methods.arrest import ARREST
from fastarat.methods.at import AT
from fastarat.methods.lbgat import LBGAT
from fastarat.methods.mart import MART
from fastarat.methods.method import ImageShape, Method
from fastarat.methods.standard import Standard
from fastarat.methods.trades import TRADES
from fastarat.models.split_batch_norm import forward_context

METHODS: dict[type[MethodSettings], type[Method]] = {
    ARATConfig: ARAT,
    ATConfig: AT,
    TRADESConfig: TRADES,
    MARTConfig: MART,
    LBGATConfig: LBGAT,
    ARRESTConfig: ARREST,
    StandardConfig: Standard,
}


def build_method(settings: MethodSettings, model: nn.Module, image_shape: ImageShape) -> Method:
    """The method for a net that takes images [C, H, W], which learns here what the method asks of its forwards.

    Raises `UserError` for a net that the method cannot train.
    """
    method = METHODS[type(settings)].for_net(settings, model, image_shape)
    context = forward_context(model)
    if context is not None and len(method.halves) == 2:
        context.order = method.halves  # type: ignore[assignment]
    return method
