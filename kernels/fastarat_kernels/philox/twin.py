"""Philox 4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3") in PyTorch.

A random number is a function of (seed, stream, step, row, element) and of nothing else: the same on
every device, for any number of processes, and after every resume. The four counter words are
(element // 4, row, step, stream), the two key words are the low and high half of the seed; element e
takes output word e % 4.

uint32 values are held in int64 tensors, which no intermediate result leaves.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


class Stream(IntEnum):
    """What a random number is for: the last counter word, so that no two uses share numbers.

    Attack starts of training, evaluation and re-estimation are one use: their steps are the training's
    steps, the restarts, and the batches.
    """

    ATTACK_START = 0
    ATTACK_RADIUS = 1
    PERMUTATION = 2
    AUGMENTATION = 3
    SUBSET = 4
    APGD_START = 5
    SQUARE_START = 6
    SQUARE_QUERY = 7
    SQUARE_SIGN = 8
    REPLAY = 9
    EXTRA_ORDER = 10
    CROP = 11
    BLOCK_ORDER = 12


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
    """Four uint32 words for each counter.

    `counter`: four int64 tensors that broadcast, each in [0, 2^32). `seed`: in [0, 2^64).
    Returns four int64 tensors in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    key = [seed & _LOW, seed >> 32 & _LOW]
    for _ in range(_ROUNDS):
        (high0, low0), (high1, low1) = _multiply(c0, _MULTIPLIERS[0]), _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0
        key = [(k + increment) & _LOW for k, increment in zip(key, _KEY_INCREMENTS, strict=True)]
    return c0, c1, c2, c3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of a product of two uint32.

    By 16-bit halves, since a signed 64-bit product may overflow: compiled C++ need not wrap it.
    """
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _LOW


def words(seed: int, stream: Stream, step: int | Tensor, rows: Tensor, num_elements: int) -> Tensor:
    """uint32 words [len(rows), num_elements] (int64) for the global row numbers `rows` (int64 [B]).

    `step`: a number, or a scalar on the device of `rows`.
    """
    groups = torch.arange(-(-num_elements // 4), device=rows.device)
    if not isinstance(step, Tensor):
        step = torch.full((), step, device=rows.device)  # filled there: the host would wait for a number's copy
    counter = (groups[None, :], rows[:, None], step & _LOW, torch.full_like(step, int(stream)))
    return torch.stack(philox(counter, seed), dim=-1).flatten(1)[:, :num_elements]


def uniform(seed: int, stream: Stream, step: int | Tensor, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform in [0, 1), float32 [len(rows), *shape]: 24 bits each, so exact in float32."""
    bits = words(seed, stream, step, rows, math.prod(shape)) >> 8
    return (bits.float() * 2.0**-24).reshape(len(rows), *shape)


def normal(seed: int, stream: Stream, step: int | Tensor, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal, float32 [len(rows), *shape], by Box and Muller from two uniforms each."""
    pairs = uniform(seed, stream, step, rows, (2, math.prod(shape)))
    radius = torch.sqrt(-2 * torch.log1p(-pairs[:, 0]))
    return (radius * torch.cos(2 * math.pi * pairs[:, 1])).reshape(len(rows), *shape)


def permutation(
    seed: int, epoch: int, num_items: int, device: torch.device | str = "cpu", stream: Stream = Stream.PERMUTATION
) -> Tensor:
    """A random order of range(num_items), int64, the same on every device: items sorted by 62 random bits."""
    rows = torch.arange(num_items, device=device)
    pair = words(seed, stream, epoch, rows, 2)
    return torch.argsort(pair[:, 0] << 30 ^ pair[:, 1], stable=True)


def signed(seed: int) -> int:
    """The int64 of the same 64 bits as `seed`, in [0, 2^64): what the schema of an op can hold."""
    return seed - 2**64 if seed >= 2**63 else seed
