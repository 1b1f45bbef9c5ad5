"""SGD with momentum over flat buffers in PyTorch: the definition, and the CPU's path."""

import torch
from torch import Tensor

from fastarat_kernels.launch import UnsupportedInput


@torch.no_grad()
def sgd(
    parameters: Tensor,
    gradients: Tensor,
    momenta: Tensor,
    learning_rate: Tensor,
    momentum: float,
    weight_decay: float,
    keep: Tensor | None = None,
    scale: Tensor | None = None,
    shadow: Tensor | None = None,
    average: Tensor | None = None,
    share: Tensor | None = None,
) -> None:
    """See `op.sgd`; `parameters`, `momenta` and `average` of any one float dtype, `gradients` and `shadow` of any.

    Raises `UnsupportedInput` for buffers of unequal length.
    """
    check_buffers(parameters, share, gradients=gradients, momenta=momenta, shadow=shadow, average=average)
    scaled = gradients.to(parameters.dtype)
    if scale is not None:
        scaled = scaled * scale
    new_momenta = momentum * momenta + scaled + weight_decay * parameters
    new_parameters = parameters - learning_rate * new_momenta
    new = [(momenta, new_momenta), (parameters, new_parameters)]
    if shadow is not None:
        new.append((shadow, new_parameters.to(shadow.dtype)))
    if average is not None and share is not None:
        new.append((average, average + share * (new_parameters - average)))
    for buffer, value in new:
        buffer.copy_(value if keep is None else torch.where(keep != 0, value, buffer))


def check_buffers(parameters: Tensor, share: Tensor | None, **buffers: Tensor | None) -> None:
    """Raise `UnsupportedInput` unless the buffers are 1-D, of one length, and `share` comes with `average`."""
    for name, buffer in {"parameters": parameters, **buffers}.items():
        if buffer is not None and (buffer.dim() != 1 or buffer.shape != parameters.shape):
            raise UnsupportedInput(
                f"{name} has shape {tuple(buffer.shape)} beside parameters of {tuple(parameters.shape)}: "
                "sgd takes flat buffers of one length"
            )
    if (buffers["average"] is None) != (share is None):
        raise UnsupportedInput("sgd takes average and share together: give both or neither")
