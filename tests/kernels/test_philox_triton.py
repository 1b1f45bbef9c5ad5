"""Random numbers drawn inside Triton kernels are those of the twin."""

import math

import pytest
import torch
import triton
import triton.language as tl
from fastarat_kernels.philox import Stream, twin
from fastarat_kernels.philox.triton import cos_of_turns, normal, uniform, words
from fastarat_kernels.philox.twin import signed
from torch import Tensor

from tests.helpers.poison import poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RADIUS = tl.constexpr(int(Stream.ATTACK_RADIUS))
# A seed's two halves, with and without the sign bit of int64; a row and a step of more than 31 bits.
SEEDS = [0, 1, 7 << 32 | 5, 2**63, 2**64 - 1, 0x299F31D0A4093822]
ROW, STEP, SIZE = 2**32 - 5, 2**31 + 11, 37


@triton.jit(do_not_specialize=["seed"])
def _draw(row_ptr, step_ptr, words_ptr, uniform_ptr, normal_ptr, size, seed, BLOCK: tl.constexpr):
    element = tl.arange(0, BLOCK)
    row, step = tl.load(row_ptr), tl.load(step_ptr)
    inside = element < size
    tl.store(words_ptr + element, words(element, row, step, RADIUS, seed).to(tl.int64), mask=inside)
    tl.store(uniform_ptr + element, uniform(element, row, step, RADIUS, seed), mask=inside)
    tl.store(normal_ptr + element, normal(element, size, row, step, RADIUS, seed), mask=inside)


@triton.jit
def _cos(u_ptr, out_ptr, BLOCK: tl.constexpr):
    element = tl.arange(0, BLOCK)
    tl.store(out_ptr + element, cos_of_turns(tl.load(u_ptr + element)))


def drawn(seed: int, row: int = ROW, step: int = STEP) -> list[Tensor]:
    """The kernel's words, uniforms and normals."""
    counter = [torch.tensor(word, device=DEVICE) for word in (row, step)]
    with poisoned():
        out = [torch.empty(SIZE, device=DEVICE, dtype=dtype) for dtype in (torch.int64, torch.float32, torch.float32)]
    _draw[(1,)](*counter, *out, SIZE, signed(seed), BLOCK=64)
    return [x.cpu() for x in out]


def expected(seed: int, row: int = ROW, step: int = STEP) -> list[Tensor]:
    """The twin's."""
    place = (seed, Stream.ATTACK_RADIUS, step, torch.tensor([row]))
    return [
        twin.words(*place, SIZE)[0],
        twin.uniform(*place, (SIZE,))[0],
        twin.normal(*place, (SIZE,))[0],
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_words_and_uniforms_are_the_twin_s_bit_for_bit(seed):
    for ours, theirs in zip(drawn(seed)[:2], expected(seed)[:2], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_the_twin_s_to_rounding(seed):
    ours, theirs = drawn(seed)[2], expected(seed)[2]
    # The twin rounds an angle of up to 2 pi, by 2.4e-7, and takes its cosine; lengths are below 6.
    assert (ours - theirs).abs().max() < 6 * 3e-7


def test_the_low_32_bits_of_row_and_step_count():
    for ours, theirs in zip(drawn(3, 2**32 + 4, 2**32 + 9), drawn(3, 4, 9), strict=True):
        assert torch.equal(ours, theirs)


def test_the_cosine_of_a_turn_is_right_all_the_way_round():
    # All quarters and their neighbours, and 4,000 places between.
    u = torch.cat([torch.arange(4096) / 4096, torch.arange(1, 4) / 4 - 2**-24, torch.tensor([1 - 2**-24])])
    u = torch.cat([u, torch.zeros(8192 - len(u))]).to(DEVICE)
    out = torch.empty_like(u)
    _cos[(1,)](u, out, BLOCK=8192)
    # Two float32 roundings and the series' end.
    assert (out.double() - (2 * math.pi * u.double()).cos()).abs().max() < 2e-7


def test_signed_keeps_the_64_bits_of_a_seed():
    for seed in SEEDS:
        assert -(2**63) <= signed(seed) < 2**63 and signed(seed) % 2**64 == seed
