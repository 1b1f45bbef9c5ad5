"""Counter-based random numbers: the published answers, and what the trainer relies on."""

import math

import pytest
import torch
from fastarat_kernels.philox import Stream, normal, permutation, philox, uniform, words

from tests.helpers.optional import needs_compiler

ONES = 0xFFFFFFFF
# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
ROWS = torch.arange(100)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers_of_random123(counter, key, answer):
    result = philox(tuple(torch.tensor([c]) for c in counter), key[0] | key[1] << 32)
    assert tuple(int(word) for word in result) == answer


def test_an_element_is_word_e_mod_4_of_the_counter_of_its_row_step_and_stream():
    seed, step, row = 7 << 32 | 5, 11, 3
    ours = words(seed, Stream.AUGMENTATION, step, torch.tensor([row]), 6)[0]
    expected = []
    for element in range(6):
        counter = tuple(torch.tensor(c) for c in (element // 4, row, step, int(Stream.AUGMENTATION)))
        expected.append(int(philox(counter, seed)[element % 4]))
    assert ours.tolist() == expected


def test_uniforms_lie_in_0_to_1_with_the_right_mean_and_variance():
    u = uniform(0, Stream.ATTACK_START, 0, ROWS, (2000,)).double()
    n = u.numel()
    assert u.min() >= 0 and u.max() < 1
    # Five standard deviations of the mean, and of the variance ((m4 - var²)/n with m4 = 1/80, var = 1/12).
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt((1 / 80 - 1 / 144) / n)
    assert torch.equal(u * 2**24, (u * 2**24).round())


def test_normals_have_the_moments_of_a_standard_normal():
    z = normal(0, Stream.ATTACK_START, 0, ROWS, (2000,)).double()
    n = z.numel()
    assert z.isfinite().all()
    # Five standard deviations of each sample moment.
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(z.pow(3).mean()) < 5 * math.sqrt(15 / n)
    assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_row_has_the_same_numbers_in_any_company(draw):
    together = draw(1, Stream.ATTACK_START, 4, ROWS, (3, 5))
    some = torch.tensor([70, 2, 41])
    assert torch.equal(draw(1, Stream.ATTACK_START, 4, some, (3, 5)), together[some])


@pytest.mark.parametrize("draw", [uniform, normal])
def test_numbers_depend_on_seed_stream_step_and_row(draw):
    def first(seed=1, stream=Stream.ATTACK_START, step=2, row=3):
        return draw(seed, stream, step, torch.tensor([row]), (8,))

    base = first()
    assert torch.equal(base, first())
    for other in (first(seed=2), first(seed=1 | 1 << 32), first(stream=Stream.SUBSET), first(step=3), first(row=4)):
        assert not (base == other).any()


def test_the_step_may_be_a_tensor():
    plain = uniform(1, Stream.ATTACK_START, 9, ROWS, (4,))
    assert torch.equal(uniform(1, Stream.ATTACK_START, torch.tensor(9), ROWS, (4,)), plain)


def test_a_permutation_holds_every_item_once():
    assert permutation(0, 1, 1000).sort().values.tolist() == list(range(1000))


def test_a_permutation_is_the_same_each_time_and_another_for_every_epoch_and_seed():
    order = permutation(0, 1, 1000)
    assert torch.equal(order, permutation(0, 1, 1000))
    for other in (permutation(0, 2, 1000), permutation(1, 1, 1000)):
        # Two random orders agree in one place on average; in 10 or more with a chance of 1e-7.
        assert (order == other).sum() < 10


def test_all_orders_are_about_equally_frequent():
    orders = [tuple(permutation(0, epoch, 3).tolist()) for epoch in range(600)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    # 100 expected each; five standard deviations of a binomial of 600 with chance 1/6.
    assert max(abs(count - 100) for count in counts) < 5 * math.sqrt(600 / 6 * 5 / 6)


@needs_compiler
@pytest.mark.no_cover  # the compiler's own work would be traced too
def test_compiled_words_are_the_same_words():
    # Compiled C++ need not wrap a product that overflows; the largest counters and the largest seed would show it.
    rows, step = torch.tensor([0, 1, 2**31, ONES]), torch.tensor(ONES)

    def of_the_largest_seed(step, rows):
        return words(2**64 - 1, Stream.ATTACK_START, step, rows, 64)

    # Neither each set of instructions is tried first, nor are headers compiled for programs to come.
    options = {"cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False}
    compiled = torch.compile(of_the_largest_seed, fullgraph=True, dynamic=False, options=options)
    assert torch.equal(compiled(step, rows), of_the_largest_seed(step, rows))
