"""Methods by their settings: one line each."""

from torch import nn

from fastarat.errors import UserError
from fastarat.methods.arat import ARAT
from fastarat.methods.at import AT
from fastarat.methods.method import Method
from fastarat.methods.settings import ARATConfig, MethodConfig
from fastarat.models.convert import feature_widths, tap_layers


def build_method(settings: MethodConfig, model: nn.Module, image_shape: tuple[int, int, int]) -> Method:
    """The method for a net that takes images [C, H, W]; AR-AT taps its aligned layers here, once."""
    if isinstance(settings, ARATConfig):
        layers: tuple[str, ...] = settings.layers or getattr(model, "aligned_layers", ())
        if not layers:
            raise UserError("this net has no aligned layers of its own: name some in ARATConfig(layers=…)")
        tap_layers(model, layers)
        return ARAT(settings, feature_widths(model, image_shape, layers))
    return AT()
