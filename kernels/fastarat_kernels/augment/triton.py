"""Gather, crop, flip, scale and cast of resident uint8 images as one Triton kernel.

One read of each uint8 pixel and one write of each output number, 1 launch. Reasoned, not measured: for 128 images of
32 x 32 x 3 in bfloat16 that is 0.4 + 0.8 MB, about a microsecond of an H100's memory. Eager PyTorch takes 248 launches
(4 for the plain gather), most of them the Philox rounds of 128 rows; inductor fuses them into very few, if the loader
is compiled.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastarat_kernels.launch import UnsupportedInput, launch
from fastarat_kernels.philox import Stream
from fastarat_kernels.philox.triton import philox
from fastarat_kernels.philox.twin import signed

BLOCK = 1024

AUGMENTATION = tl.constexpr(int(Stream.AUGMENTATION))


@triton.jit(do_not_specialize=["epoch", "seed"])
def _augment_kernel(
    images_ptr,
    index_ptr,
    identity_ptr,
    out_ptr,
    epoch,
    seed,
    max_value,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    PADDING: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK numbers of one output image, in its memory order: row, column, channel."""
    image, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = place % OUT_CHANNELS, place // OUT_CHANNELS
    row, column = pixel // WIDTH, pixel % WIDTH
    index = tl.load(index_ptr + image)
    identity = tl.load(identity_ptr + image)
    word = philox(tl.zeros([1], tl.int32), identity, epoch, AUGMENTATION, seed)
    if FLIP:
        column = tl.where(word[2] & 1 == 1, WIDTH - 1 - column, column)
    row += (word[0] % (2 * PADDING + 1)).to(tl.int32) - PADDING
    column += (word[1] % (2 * PADDING + 1)).to(tl.int32) - PADDING
    inside = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH) & (channel < CHANNELS)
    mask = place < HEIGHT * WIDTH * OUT_CHANNELS
    # int64, as a set may be larger than 2 GiB.
    source = images_ptr + index * (HEIGHT * WIDTH * CHANNELS) + (row * WIDTH + column) * CHANNELS + channel
    value = tl.div_rn(tl.load(source, mask=mask & inside, other=0).to(tl.float32), max_value * 1.0)
    target = out_ptr + image * (HEIGHT * WIDTH * OUT_CHANNELS) + place
    tl.store(target, value.to(out_ptr.dtype.element_ty), mask=mask)


def augment(
    images: Tensor,
    index: Tensor,
    epoch: int,
    max_value: int,
    dtype: torch.dtype,
    crop_padding: int,
    flip: bool,
    seed: int,
    num_channels: int | None = None,
    identity: Tensor | None = None,
) -> Tensor:
    """See `op.augment`. Raises `UnsupportedInput` for float64 and for a set that is empty or not contiguous."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnsupportedInput(f"dtype is {dtype}: kernels take float32, bfloat16 and float16; use kernels=pytorch")
    if not images.is_contiguous() or images.numel() == 0:
        raise UnsupportedInput(
            f"images of shape {tuple(images.shape)} have strides {images.stride()}: give images.contiguous(), not empty"
        )
    _, height, width, channels = images.shape
    num_channels = num_channels or channels
    identity = index if identity is None else identity
    out = torch.empty(
        len(index), num_channels, height, width, dtype=dtype, device=images.device, memory_format=torch.channels_last
    )
    if len(index) == 0:  # a process's share of a last batch of fewer images than processes
        return out
    launch(
        _augment_kernel,
        (len(index), -(-height * width * num_channels // BLOCK)),
        *(images, index.contiguous(), identity.contiguous(), out, epoch, signed(seed), max_value),
        HEIGHT=height,
        WIDTH=width,
        CHANNELS=channels,
        OUT_CHANNELS=num_channels,
        PADDING=crop_padding,
        FLIP=flip,
        BLOCK=BLOCK,
    )
    return out


def configurations() -> Iterator[tuple[str, Callable[[], object]]]:
    """(label, launcher on meta tensors) of what the recipes run: CIFAR images, batch 128, augmented and plain."""
    images = torch.empty(50_000, 32, 32, 3, dtype=torch.uint8, device="meta")
    index = torch.empty(128, dtype=torch.int64, device="meta")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    seeds = ((32, 0), (64, 2**63))  # what a seed fits in decides its type in the kernel
    settings = product(dtypes, (3, 4, 8), ((4, True), (0, False)), seeds)
    for dtype, channels, (padding, flip), (bits, seed) in settings:
        label = f"{dtype} {channels} channels, padding {padding}, flip {flip}, {bits}-bit seed".replace("torch.", "")
        yield label, partial(augment, images, index, 3, 255, dtype, padding, flip, seed, channels)
