"""A module as the attacks want it: weights constant, in the layout that its convolutions like, and left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fastarat.attacks.pgd import Logits
from fastarat.common.errors import UserError, WorkError
from fastarat.common.tf32 import without_tf32
from fastarat.models.convert import copied


@contextmanager
def prepared(model: nn.Module, x: Tensor) -> Iterator[Logits]:
    """`model`, in eval mode, as a function from images like `x` [B, C, H, W] to logits, while no parameter wants a
    gradient and, where the model allows it, all is channels-last. Afterwards both are as before.

    The function raises `WorkError` with one line where the model fails on a batch.
    """
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    filters = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    layouts = [parameter.data for parameter in filters]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        if filters and takes_channels_last(model, x):
            for parameter in filters:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            yield _telling(lambda v: model(v.contiguous(memory_format=torch.channels_last)), len(x))
        else:
            yield _telling(model, len(x))
    finally:
        for parameter, data in zip(filters, layouts, strict=True):
            parameter.data = data
        for parameter in wanted:
            parameter.requires_grad_(True)


def _telling(logits_of: Logits, tried: int) -> Logits:
    """`logits_of`, which has taken `tried` images, with what it raises as one line."""

    def call(x: Tensor) -> Tensor:
        try:
            return logits_of(x)
        except (torch.OutOfMemoryError, UserError, WorkError):
            raise
        except (Exception, SystemExit) as error:  # a net of others may raise anything
            raise WorkError(
                f"the model fails on a batch of {len(x)} images, though it took {tried} ({one_line(error)}): let it "
                "take any number (export it with a dynamic batch), or give another batch size"
            ) from error

    return call


def in_full_float32(logits_of: Logits) -> Logits:
    """`logits_of`, computed without TF32."""

    def call(x: Tensor) -> Tensor:
        with without_tf32():
            return logits_of(x)

    return call


def one_line(e: BaseException) -> str:
    """The first line of what went wrong in a model, with its kind where that is not PyTorch's own."""
    text = next(iter(str(e).strip().splitlines()), "")[:300]
    return text if text and isinstance(e, RuntimeError) else f"{type(e).__name__}: {text}".removesuffix(": ")


class InBf16(nn.Module):
    """A copy of a model that computes in bfloat16 where autocast does, the weights cast once; its logits are float32.

    Raises `UserError` for a model that cannot be copied.
    """

    def __init__(self, model: nn.Module, device_type: str):
        super().__init__()
        self.device_type = device_type
        try:
            self.model = copied(model)
        except UserError as error:
            raise UserError(f"bf16 computes with a copy of the model: {error}, or give fp32") from error
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
