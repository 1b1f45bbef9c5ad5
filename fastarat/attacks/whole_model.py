"""A module as the attacks want it: frozen, in the layout that its convolutions like, and left as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fastarat.attacks.pgd import Logits
from fastarat.errors import UserError


@contextmanager
def frozen(model: nn.Module, x: Tensor) -> Iterator[Logits]:
    """`model`, in eval mode, as a function from images like `x` [B, C, H, W] to logits, while no parameter wants a
    gradient and, where the model allows it, all is channels-last. Afterwards both are as before."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    filters = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    layouts = [parameter.data for parameter in filters]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        if filters and takes_channels_last(model, x):
            for parameter in filters:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            yield lambda v: model(v.contiguous(memory_format=torch.channels_last))
        else:
            yield model
    finally:
        for parameter, data in zip(filters, layouts, strict=True):
            parameter.data = data
        for parameter in wanted:
            parameter.requires_grad_(True)


class InBf16(nn.Module):
    """A copy of a model that computes in bfloat16 where autocast does, the weights cast once; its logits are float32.

    Raises `UserError` for a model that cannot be copied.
    """

    def __init__(self, model: nn.Module, device_type: str):
        super().__init__()
        self.device_type = device_type
        try:
            self.model = copy.deepcopy(model)
        except Exception as e:
            raise UserError(f"bf16 needs a copy of the model, which cannot be made: {e}; give fp32") from None
        for module in self.model.modules():
            if isinstance(module, nn.Linear | _ConvNd):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K], float32, of images [B, C, H, W]."""
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.model(x).float()


@torch.no_grad()
def takes_channels_last(model: nn.Module, x: Tensor) -> bool:
    """Whether the model gives the same for `x` in this layout: a `view` of features may refuse it."""
    plain = model(x)
    try:
        moved = model(x.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    # A model with random numbers differs from itself; it is no view that would.
    return moved.shape == plain.shape
