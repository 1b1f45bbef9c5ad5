"""`pooled_features` as a PyTorch operator: the twin on the CPU, Triton on CUDA, with autograd."""

from typing import Any

import torch
from torch import Tensor

from fastarat_kernels.launch import UnsupportedInput
from fastarat_kernels.pooled_features import twin
from fastarat_kernels.torch_op import torch_op


def pooled_features(z: Tensor) -> Tensor:
    """ReLU, then global average pooling: out[n, c] = mean over h, w of relu(z[n, c, h, w]).

    `z`: [N, C, H, W], or [N, C] (no mean then). On CUDA: channels-last (contiguous for [N, C]), in float32,
    bfloat16 or float16; on the CPU any layout and float dtype. Returns [N, C] in float32, or in float64 for
    float64. Differentiable once: dz = [z > 0] dout / (H W), in z's dtype and layout.
    Raises `UnsupportedInput` for other shapes, and on CUDA for other dtypes and layouts.
    """
    if z.dim() not in (2, 4) or not z.is_floating_point():
        raise UnsupportedInput(f"z is {z.dtype} {tuple(z.shape)}: pooled_features takes float [N, C] and [N, C, H, W]")
    return _pooled_features(z)


def _empty(z: Tensor) -> Tensor:
    return z.new_empty(z.shape[:2], dtype=torch.promote_types(z.dtype, torch.float32))


_pooled_features = torch_op(twin.pooled_features, _empty)
pooled_features_backward = torch_op(twin.pooled_features_backward, lambda gradient, z: torch.empty_like(z))


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> Tensor:
    return pooled_features_backward(gradient, *ctx.saved_tensors)


_pooled_features.register_autograd(_differentiate, setup_context=_keep)
