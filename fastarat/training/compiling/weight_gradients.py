"""A convolution's gradient by its weights, as inductor compiles it for a CPU: one product where maps are small.

With the pixels under the filter at each place as a matrix [N h w, k k C], of which each pixel is in k² rows, the
gradient is its product with the output's gradient [N h w, K]: what a GPU's libraries call an implicit GEMM, made
explicit. oneDNN's own way for bfloat16 runs at a tenth of a product's speed where maps are small: of 4 x 4 pixels and
256 channels it takes 23 ms for 128 images on two cores of a Xeon with AMX, and this way 3; of 16 x 16 and 64 channels
9 ms, and this way 31, since the matrix is large.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
_LARGEST = 8 * 8
"""the largest output map, in pixels, for which one product is faster"""
_MOST_ELEMENTS = 2**23
"""of such a matrix: half of the 32 MB from which on the C library gets memory from the system anew each time, which
costs more than to fill it"""
_MOST_PIECES = 8
"""of the images; more would be as many loops to compile"""


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> Any:
    """`aten.convolution_backward`: x [N, C, H, W], grad [N, K, h, w], weight [K, C, k, k].

    The gradients of x and weight in their dtypes and the bias's, those that are `wanted`; NotImplemented, for what
    inductor does by itself, where a product is not faster or the gradient of the weights not wanted.
    """
    plain = x.ndim == 4 and groups == 1 and not transposed and all(step == 1 for step in dilation)
    if not (wanted[1] and plain and x.dtype == torch.bfloat16 and _is_small(grad, weight)):
        return NotImplemented
    rest = [wanted[0], False, wanted[2]]
    of_x, _, of_bias = (
        aten.convolution_backward(
            grad, x, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, rest
        )
        if any(rest)
        else (None, None, None)
    )
    return of_x, weight_gradient(grad, x, weight, stride, padding), of_bias


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The gradient of weight [K, C, k, l], channels-last, from grad [N, K, h, w] and x [N, C, H, W], of one dtype."""
    each = ceil(len(x) / _num_pieces(grad, weight))
    pieces = zip(grad.split(each), x.split(each), strict=True)
    parts = [_of_images(*of_some, weight.shape[2:], stride, padding) for of_some in pieces]
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=wide).to(weight.dtype)
    return total.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)


def _is_small(grad: Tensor, weight: Tensor) -> bool:
    return grad.shape[2:].numel() <= _LARGEST and 0 < _num_pieces(grad, weight) <= _MOST_PIECES


def _num_pieces(grad: Tensor, weight: Tensor) -> int:
    """How many pieces the batch is split into; 0 for an empty batch."""
    most = max(_MOST_ELEMENTS // (grad.shape[2:].numel() * weight[0].numel()), 1)
    return ceil(len(grad) / most)


def _of_images(grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """[K, k l C]."""
    (above, beside), (height, width), (down, across) = padding, kernel, stride
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, beside, beside, above, above))
    under = padded.unfold(1, height, down).unfold(2, width, across)  # [N, h, w, C, k, l]
    columns = under.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
    return grad.permute(1, 0, 2, 3).flatten(1) @ columns
