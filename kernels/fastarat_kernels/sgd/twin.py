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
    """m <- momentum m + scale g + weight_decay p;  p <- p - learning_rate m, in place (torch.optim.SGD's rule).

    Then shadow <- p, and average <- average + share (p - average), each if given. `keep` 0 leaves everything
    as it was, whatever the gradients hold (a step skipped because fp16 gradients overflowed).

    Buffers: [n], `parameters`, `momenta` and `average` of one float dtype, `gradients` and `shadow` of any;
    `learning_rate`, `keep`, `scale` and `share`: tensors of one element. Raises `UnsupportedInput` for others.
    """
    check_buffers(parameters, gradients, momenta, shadow, average, share)
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


def check_buffers(
    parameters: Tensor,
    gradients: Tensor,
    momenta: Tensor,
    shadow: Tensor | None,
    average: Tensor | None,
    share: Tensor | None,
) -> None:
    """Raise `UnsupportedInput` unless the buffers are 1-D, of one length, and `share` comes with `average`."""
    buffers = {
        "parameters": parameters,
        "gradients": gradients,
        "momenta": momenta,
        "shadow": shadow,
        "average": average,
    }
    for name, buffer in buffers.items():
        if buffer is not None and (buffer.dim() != 1 or buffer.shape != parameters.shape):
            raise UnsupportedInput(
                f"{name} has shape {tuple(buffer.shape)} beside parameters of {tuple(parameters.shape)}: "
                "sgd takes flat buffers of one length"
            )
    if (average is None) != (share is None):
        raise UnsupportedInput("sgd takes average and share together: give both or neither")
