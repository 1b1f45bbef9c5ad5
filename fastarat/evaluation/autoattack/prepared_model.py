"""A module as the attacks want it: weights constant, in the layout that its convolutions like, and left as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fastarat.attacks.pgd import Logits
from fastarat.common.errors import UserError, WorkError
from fastarat.common.memory import memory_that_ran_out
from fastarat.common.tf32 import without_tf32
from fastarat.models.convert import copied

LAYERS = (nn.Linear, _ConvNd)


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
        except (UserError, WorkError):
            raise
        except (Exception, SystemExit) as error:  # a net of others may raise anything
            if memory_that_ran_out(error):
                raise
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

    The first and the last of its linear and convolutional layers compute in float32: bfloat16 keeps 8 bits of a pixel
    and of a logit, in which perturbations vanish and margins tie (FAB then leaves up to 13 of 100 images too many of a
    small net). Raises `UserError` for a model that cannot be copied, or whose logits are bfloat16's all the same.
    """

    def __init__(self, model: nn.Module, x: Tensor):
        super().__init__()
        self.device_type = x.device.type
        try:
            self.model = copied(model)
        except UserError as error:
            raise UserError(f"bf16 computes with a copy of the model: {error}, or give fp32") from error
        layers = called_layers(self.model, x)
        ends = list(dict.fromkeys((*layers[:1], *layers[-1:])))
        kept = {id(parameter) for layer in ends for parameter in layer.parameters()}  # others may share them
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False) if isinstance(module, LAYERS) else ():
                if id(parameter) not in kept:
                    parameter.data = parameter.data.to(torch.bfloat16)
        for layer in ends:
            layer.forward = _in_float32(layer.forward, self.device_type, rounded=layer is not layers[-1])
        if are_in_bf16(self(x)) and not are_in_bf16(model(x)):
            raise UserError(
                "the model's logits come out in bfloat16, too coarse to be attacked: let an nn.Linear or a convolution "
                "compute them, or give fp32"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K], float32, of images [B, C, H, W]."""
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.model(x).float()


@torch.no_grad()
def called_layers(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """The linear and convolutional layers of a model in the order in which images `x` pass through them."""
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in model.modules()
        if isinstance(module, LAYERS)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return called


def _in_float32(forward: Callable[..., Tensor], device_type: str, *, rounded: bool) -> Callable[..., Tensor]:
    """A layer's `forward` outside autocast; `rounded`: what it gives is bfloat16, as the layers after it want it."""

    def widened(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value

    def call(*given: Any, **named: Any) -> Tensor:
        with torch.autocast(device_type, enabled=False):
            out = forward(*map(widened, given), **{name: widened(value) for name, value in named.items()})
        return out.bfloat16() if rounded else out

    return call


def are_in_bf16(logits: Tensor) -> bool:
    """Whether bfloat16 holds each of them exactly."""
    return torch.equal(logits.bfloat16().to(logits.dtype), logits)


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
