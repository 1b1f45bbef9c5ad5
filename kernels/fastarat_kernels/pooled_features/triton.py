"""ReLU and global average pooling in Triton: one launch forward, one backward, the ReLU never written.

Bytes per element of a bf16 map, forward: 2 (read z). Eager PyTorch runs ReLU (2 + 2), cast (2 + 4) and mean (4):
14 in three launches, and keeps the ReLU for the backward. Backward: 4 (read z, write dz) in one launch; eager
expands and divides (4), casts (4 + 2) and masks (2 + 2 + 2): 16 in three. Inductor, where it sees the whole
expression, fuses to the same bytes and launches: the gain over it is only that an opaque batch-norm may come
before. Counted, not measured on a GPU.

A map is [N, H W, C] in memory (channels-last). A program takes one image and one tile of channels, and walks
over H W; sums are float32, in a fixed order.
"""

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastarat_kernels.launch import MAX_GRID_Y, UnsupportedInput, check_rows, launch

# 64 channels of 2 bytes are one cache line; 64 x 64 elements are four 16-byte loads of each of 128 threads.
_MAX_TILE = 64


@triton.jit
def _forward(z, out, HW, C, BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = z + n * HW * C
    total = tl.zeros([BLOCK_HW, BLOCK_C], tl.float32)
    for start in range(0, HW, BLOCK_HW):
        p = start + tl.arange(0, BLOCK_HW)
        inside = (p < HW)[:, None] & (c < C)[None, :]
        x = tl.load(image + p[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        # Not tl.maximum: NaN must go through, as it does in PyTorch's ReLU.
        total += tl.where(x <= 0, 0.0, x)
    tl.store(out + n * C + c, tl.sum(total, axis=0) / HW, mask=c < C)


@triton.jit
def _backward(gradient, z, dz, HW, C, BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = n * HW * C
    g = (tl.load(gradient + n * C + c, mask=c < C, other=0.0) / HW)[None, :]
    for start in range(0, HW, BLOCK_HW):
        p = start + tl.arange(0, BLOCK_HW)
        inside = (p < HW)[:, None] & (c < C)[None, :]
        element = image + p[:, None] * C + c[None, :]
        x = tl.load(z + element, mask=inside, other=0.0).to(tl.float32)
        tl.store(dz + element, tl.where(x <= 0, 0.0, g).to(dz.dtype.element_ty), mask=inside)


def pooled_features(z: Tensor) -> Tensor:
    """out[n, c] = mean over h, w of relu(z[n, c, h, w]), float32 [N, C].

    `z`: [N, C, H, W] channels-last or [N, C] contiguous (no mean then), in float32, bfloat16 or float16.
    Raises `UnsupportedInput` for others.
    """
    check_rows(z, "z")
    out = torch.empty(z.shape[:2], dtype=torch.float32, device=z.device)
    _start(_forward, z, out, example=z)
    return out


def pooled_features_backward(gradient: Tensor, z: Tensor) -> Tensor:
    """dz = [z > 0] gradient / (H W), in the dtype and the layout of `z`.

    `gradient`: float32 [N, C]; `z` as for `pooled_features`. Raises `UnsupportedInput` for others.
    """
    check_rows(z, "z")
    gradient = gradient.contiguous()
    if gradient.dtype != torch.float32 or gradient.shape != z.shape[:2]:
        raise UnsupportedInput(
            f"gradient is {gradient.dtype} {tuple(gradient.shape)}: give float32 {tuple(z.shape[:2])}"
        )
    dz = torch.empty_like(z)
    _start(_backward, gradient, z, dz, example=z)
    return dz


def _start(kernel: object, *tensors: Tensor, example: Tensor) -> None:
    """Start `kernel` on `tensors` with a program for each image and channel tile of `example`."""
    num_images, channels = example.shape[:2]
    positions = example.shape[2] * example.shape[3] if example.dim() == 4 else 1
    block_hw, block_c = (min(1 << (n - 1).bit_length(), _MAX_TILE) for n in (positions, channels))
    num_tiles = -(-channels // block_c)
    if num_tiles > MAX_GRID_Y:
        raise UnsupportedInput(f"z has {channels} channels: the kernel takes {MAX_GRID_Y * block_c} at most")
    launch(kernel, (num_images, num_tiles), *tensors, positions, channels, BLOCK_HW=block_hw, BLOCK_C=block_c)


def configurations() -> Iterator[tuple[str, Callable[[], object]]]:
    """The maps of which features are taken, both halves of a batch of 128: (label, call on meta tensors)."""
    # ResNet-18 and -50: layer4's batch-norms. WRN-34-10: the ReLUs of block 3 and the final average pool.
    maps = {
        "resnet18 layer4": (256, 512, 4, 4),
        "wrn-34-10 block3 in": (256, 320, 16, 16),
        "wrn-34-10 block3": (256, 640, 8, 8),
        "resnet50 layer4 in": (256, 512, 14, 14),
        "resnet50 layer4": (256, 2048, 7, 7),
    }
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    for name, shape in maps.items():
        for label, dtype in dtypes.items():
            z = torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)
            gradient = torch.empty(shape[:2], device="meta")
            yield f"{name} {label}", lambda z=z: pooled_features(z)
            yield f"{name} {label} backward", lambda z=z, gradient=gradient: pooled_features_backward(gradient, z)
