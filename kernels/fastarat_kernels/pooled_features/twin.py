"""ReLU and global average pooling in PyTorch: the definition, and the CPU's path."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled_features(z: Tensor) -> Tensor:
    """out[n, c] = mean over h, w of relu(z[n, c, h, w]).

    `z`: [N, C, H, W], or [N, C] (no mean then), any float dtype. Returns [N, C] in float32, or in float64
    for float64.
    """
    x = F.relu(z).to(_wide(z))
    # Its gradient comes back channels-last, as `z` is: that of `x.mean((2, 3))` would not.
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1) if z.dim() == 4 else x


def pooled_features_backward(gradient: Tensor, z: Tensor) -> Tensor:
    """dz = [z > 0] gradient / (H W), in the dtype and the layout of `z`; `gradient`: [N, C]."""
    gradient = gradient.to(_wide(z))
    if z.dim() == 4:
        gradient = gradient[:, :, None, None] / (z.shape[2] * z.shape[3])
    # As PyTorch's ReLU: z <= 0 stops the gradient, so NaN lets it through.
    return torch.empty_like(z).copy_(gradient.masked_fill(z <= 0, 0))


def _wide(z: Tensor) -> torch.dtype:
    """The dtype to add in."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32
