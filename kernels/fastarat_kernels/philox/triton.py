"""Philox 4x32-10 inside Triton kernels: device functions, no kernel of its own.

The same words as `twin.py`, hence the same uniforms bit for bit; normals to a few roundings.
Inside a kernel a random number costs no bytes and no launch: in eager PyTorch the ten rounds of one draw are some 130
launches over int64 tensors of the draw's size. Every element asks for its own four words and keeps one; where a thread
holds neighbouring elements the compiler computes them once.
"""

import triton
import triton.language as tl


@triton.jit
def philox(group, row, step, STREAM: tl.constexpr, seed):
    """Four uint32 words of the counter (group, row, step, STREAM).

    Integers, scalar or tensors, of which the low 32 bits count; `seed` is a signed 64-bit integer (see
    `philox.signed`), of which `tl.philox` makes the two key words, low half first.
    """
    return tl.philox(seed, group.to(tl.uint32), row.to(tl.uint32), step.to(tl.uint32), STREAM)


@triton.jit
def words(elements, row, step, STREAM: tl.constexpr, seed):
    """One uint32 word for each of `elements` (int32 tensor): word element % 4 of the group element // 4."""
    lane, word = elements % 4, philox(elements // 4, row, step, STREAM, seed)
    return tl.where(lane < 2, tl.where(lane == 0, word[0], word[1]), tl.where(lane == 2, word[2], word[3]))


@triton.jit
def uniform(elements, row, step, STREAM: tl.constexpr, seed):
    """Uniform in [0, 1), float32: 24 bits each, so exact."""
    return (words(elements, row, step, STREAM, seed) >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def cos_of_turns(u):
    """cos(2πu) for u in [0, 1), to 1e-7: sin(2πs) with s = |u - 1/2| - 1/4 (exact), by Taylor's series to x^11.

    |x| is at most π/2, where the next term is below 6e-8. `tl.cos` also reduces huge arguments, for which the GPU's
    version sets aside local memory.
    """
    x = (tl.abs(u - 0.5) - 0.25) * 6.283185307179586
    x2 = x * x
    series = -1 / 5040 + x2 * (1 / 362880 + x2 * (-1 / 39916800))
    return x + x * x2 * (-1 / 6 + x2 * (1 / 120 + x2 * series))


@triton.jit
def normal(elements, num_elements, row, step, STREAM: tl.constexpr, seed):
    """Standard normal, float32, by Box and Muller from the uniforms `elements` and `num_elements + elements`.

    1 - u is exact in float32, so log(1 - u) is as good as log1p(-u), which Triton does not have.
    """
    length = tl.sqrt_rn(-2.0 * tl.log(1.0 - uniform(elements, row, step, STREAM, seed)))
    return length * cos_of_turns(uniform(num_elements + elements, row, step, STREAM, seed))
