"""How the kernels divide the work. Known without triton, since it gives the shape of the partials."""

import math

MAX_BLOCK_C = 32
TILE_BYTES = 8192
MAX_SPLITS = 64
MAX_PROGRAMS = 512


def ceil_div(number: int, divisor: int) -> int:
    """number / divisor, rounded up."""
    return -(-number // divisor)


def power_of_two_below(number: int) -> int:
    """The largest power of two that is at most `number` (>= 1)."""
    return 1 << (number.bit_length() - 1)


def block_channels(channels: int) -> int:
    """Channels of a tile: 16 or 32 where that divides C, else enough or 32, masked; at least the 8 of a byte of bits.

    32 are 64 bytes of a row in half precision, whole sectors of memory. Wider tiles would leave fewer programs, so that
    more splits were needed, and what all programs read to merge them grows with the square of the splits.
    """
    divisor = channels & -channels
    if divisor >= 16:
        return min(divisor, MAX_BLOCK_C)
    return min(max(8, power_of_two_below(2 * channels - 1)), MAX_BLOCK_C)


def block_rows(channels: int, itemsize: int) -> int:
    """Rows of a tile of elements of `itemsize` bytes: at most 32 bytes for each of 256 threads."""
    return TILE_BYTES // (block_channels(channels) * itemsize)


def num_splits(rows: int, channels: int, groups: int) -> int:
    """P, into how many parts the `rows` of each group are split: a power of two.

    Two to five programs per multiprocessor of an A100, H100 or B200 where there are rows enough. Each program reads
    12 P bytes a channel to merge the splits (from the L2 cache), and reads and writes 4 rows / P in half precision: P
    is at most the square root of rows / 8, so that the former are at most 3/8 of the latter. P is the same for every
    device, and so are the results.
    """
    tiles = ceil_div(channels, block_channels(channels))
    limits = (MAX_SPLITS, MAX_PROGRAMS // (tiles * groups), math.isqrt(rows // 8))
    return power_of_two_below(max(1, min(limits)))
