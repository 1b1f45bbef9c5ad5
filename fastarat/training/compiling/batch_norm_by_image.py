"""Batch-norm as inductor compiles it for a CPU: statistics image by image, so that its threads share the work.

Inductor's own decomposition reduces all pixels at once, and splits that among threads by channels, 16 to a vector: of a
layer of 16 channels one thread does it all. Means of equal groups combine exactly, and variances by the law of total
variance (Chan, Golub and LeVeque, 1983).
"""

import torch
from torch import Tensor
from torch._decomp import decompositions as as_written

aten = torch.ops.aten
_OF_CHANNELS = (None, slice(None), None, None)


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """`aten._native_batch_norm_legit_functional`: x [N, C, H, W], all else [C].

    Returns the normalised x in its dtype, the batch's mean and inverse standard deviation (fp32, or fp64 of fp64), and
    both running statistics anew.
    """
    if not training or x.ndim != 4:
        return as_written._native_batch_norm_legit_functional(
            x, weight, bias, running_mean, running_var, training, momentum, eps
        )
    wide = x.to(_accumulated(x))
    variances, means = torch.var_mean(_by_image(wide), 1, correction=0)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    inverse = torch.rsqrt(variance + eps)
    normalised = (wide - mean[_OF_CHANNELS]) * inverse[_OF_CHANNELS]
    if weight is not None:
        normalised = normalised * weight.to(wide.dtype)[_OF_CHANNELS]
    if bias is not None:
        normalised = normalised + bias.to(wide.dtype)[_OF_CHANNELS]
    count = x.numel() // x.shape[1]
    unbiased = variance * (count / (count - 1))
    running_mean = momentum * mean.to(running_mean.dtype) + (1 - momentum) * running_mean
    running_var = momentum * unbiased.to(running_var.dtype) + (1 - momentum) * running_var
    return normalised.to(x.dtype), mean, inverse, running_mean, running_var


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    training: bool,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    """`aten.native_batch_norm_backward`: grad and x [N, C, H, W], all else [C].

    Returns the gradients of x, weight and bias, those that are `wanted`, in their dtypes.
    """
    if not training or x.ndim != 4:
        return as_written.native_batch_norm_backward(
            grad, x, weight, running_mean, running_var, mean, inverse, training, eps, wanted
        )
    wide, centred = grad.to(_accumulated(x)), x.to(_accumulated(x)) - mean[_OF_CHANNELS]
    grads = _by_image(wide).sum(1).sum(0)
    products = _by_image(wide * centred).sum(1).sum(0)
    count = x.numel() // x.shape[1]
    scale = inverse if weight is None else inverse * weight.to(wide.dtype)
    slope = products * inverse.square() / count
    of_x = (wide - (grads / count)[_OF_CHANNELS] - centred * slope[_OF_CHANNELS]) * scale[_OF_CHANNELS]
    dtype = x.dtype if weight is None else weight.dtype
    return (
        of_x.to(x.dtype) if wanted[0] else None,
        (products * inverse).to(dtype) if wanted[1] else None,
        grads.to(dtype) if wanted[2] else None,
    )


def _accumulated(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _by_image(x: Tensor) -> Tensor:
    """[N, C, H, W] as [N, H * W, C]: a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
