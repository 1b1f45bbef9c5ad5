"""`pooled_features` as a PyTorch operator: the twin on the CPU, Triton on CUDA, with autograd."""

from typing import Any

import torch
from torch import Tensor

from fastarat_kernels.launch import UnsupportedInput
from fastarat_kernels.pooled_features import twin


@torch.library.custom_op("fastarat::pooled_features", mutates_args=(), device_types="cpu")
def pooled_features(z: Tensor) -> Tensor:
    """ReLU, then global average pooling: out[n, c] = mean over h, w of relu(z[n, c, h, w]).

    `z`: [N, C, H, W], or [N, C] (no mean then). On CUDA: channels-last (contiguous for [N, C]), in float32,
    bfloat16 or float16; on the CPU any layout and float dtype. Returns [N, C] in float32, or in float64 for
    float64. Differentiable once: dz = [z > 0] dout / (H W), in z's dtype and layout.
    Raises `UnsupportedInput` for other shapes, and on CUDA for other dtypes and layouts.
    """
    _check(z)
    return twin.pooled_features(z)


@torch.library.custom_op("fastarat::pooled_features_backward", mutates_args=(), device_types="cpu")
def pooled_features_backward(gradient: Tensor, z: Tensor) -> Tensor:
    """dz = [z > 0] gradient / (H W), in the dtype and the layout of `z`; `gradient`: [N, C]."""
    return twin.pooled_features_backward(gradient, z)


@pooled_features.register_kernel("cuda")
def _(z: Tensor) -> Tensor:
    from fastarat_kernels.pooled_features import triton

    return triton.pooled_features(z)


@pooled_features_backward.register_kernel("cuda")
def _(gradient: Tensor, z: Tensor) -> Tensor:
    from fastarat_kernels.pooled_features import triton

    return triton.pooled_features_backward(gradient.contiguous(), z)


@pooled_features.register_fake
def _(z: Tensor) -> Tensor:
    _check(z)
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    return torch.empty(z.shape[:2], dtype=dtype, device=z.device)


@pooled_features_backward.register_fake
def _(gradient: Tensor, z: Tensor) -> Tensor:
    return torch.empty_like(z)


def _check(z: Tensor) -> None:
    if z.dim() not in (2, 4) or not z.is_floating_point():
        raise UnsupportedInput(f"z is {z.dtype} {tuple(z.shape)}: pooled_features takes float [N, C] and [N, C, H, W]")


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> Tensor:
    return pooled_features_backward(gradient, *ctx.saved_tensors)


pooled_features.register_autograd(_differentiate, setup_context=_keep)
