"""The PGD step and the random start: Triton kernels and operators against the PyTorch twin."""

import math
from collections.abc import Callable

import pytest
import torch
from fastarat_kernels import pgd_step as ops
from fastarat_kernels.launch import UnsupportedInput, recording
from fastarat_kernels.pgd_step import ball, twin
from fastarat_kernels.pgd_step import triton as kernels
from fastarat_kernels.pgd_step.op import _pgd_step, _start_point
from torch import Tensor

from tests.helpers.kernel_errors import error
from tests.helpers.poison import poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# One block and several, full and not, of either norm's size; each in the layout that is harder for it.
IMAGES = [
    ((2, 3, 5, 7), LAYOUTS[0]),
    ((2, 3, 5, 7), LAYOUTS[1]),
    ((3, 1, 8, 8), LAYOUTS[1]),
    ((1, 3, 1, 1), LAYOUTS[1]),
    # Of many numbers, for which the interpreter's lines are traced long; the others have every line.
    pytest.param((1, 4, 32, 32), LAYOUTS[0], marks=pytest.mark.no_cover),
    pytest.param((2, 3, 37, 39), LAYOUTS[1], marks=pytest.mark.no_cover),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NORMS = ["linf", "l2"]
# float32: sums of up to 4,096 squares in another order. Halves: one rounding of the result; bf16 one unit in the
# last place, since the interpreter truncates.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}
STEP_SIZE, EPS, SEED, STEP = 0.1, 0.15, 2**63 + 12345, 2**31 + 7


def images(shape: tuple[int, ...], layout=torch.contiguous_format, dtype=torch.float32, device=DEVICE) -> Tensor:
    return torch.rand(shape).to(device, dtype).to(memory_format=layout)


def scalar(value: float, device: str = DEVICE) -> Tensor:
    return torch.tensor(value, device=device)


def iterate(shape, layout=torch.contiguous_format, dtype=torch.float32, device=DEVICE) -> tuple[Tensor, ...]:
    """x_adv, gradient and centre; some gradients are 0, and the iterate starts near and beyond the ball."""
    centre = images(shape, layout, dtype, device)
    x_adv = centre + (0.5 * (torch.rand(shape) - 0.5)).to(device, dtype)
    gradient = torch.randn(shape).to(device, dtype).to(memory_format=layout)
    gradient[..., 0] = 0
    return x_adv, gradient, centre


def step_of(function: Callable[..., Tensor], x_adv, gradient, centre, norm: str) -> Tensor:
    device = x_adv.device.type
    return function(x_adv, gradient, centre, scalar(STEP_SIZE, device), scalar(EPS, device), norm)


def start_of(function: Callable[..., Tensor], x: Tensor, norm: str, rows: Tensor | None = None) -> Tensor:
    device = x.device.type
    rows = 2**31 + 3 * torch.arange(len(x), device=device) if rows is None else rows
    return function(x, rows, scalar(STEP, device), scalar(EPS, device), SEED, norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "layout"), IMAGES)
def test_the_kernel_makes_the_twin_s_step(shape, layout, norm):
    given = iterate(shape, layout)
    with poisoned():
        ours = step_of(kernels.pgd_step, *given, norm)
    expected = step_of(twin.pgd_step, *given, norm)
    if norm == "linf":
        assert torch.equal(ours, expected)
    assert error(ours, expected) < BOUNDS[torch.float32]
    assert ours.stride() == given[0].stride()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_kernel_makes_the_twin_s_step_in_half_precision(dtype, norm):
    given = iterate((2, 3, 5, 7), torch.channels_last, dtype)
    with poisoned():
        ours = step_of(kernels.pgd_step, *given, norm)
    assert ours.dtype == dtype
    assert error(ours, step_of(twin.pgd_step, *given, norm)) < BOUNDS[dtype]


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_of_another_layout_gives_the_same_step(norm):
    x_adv, gradient, centre = iterate((2, 3, 5, 7), torch.channels_last)
    expected = step_of(kernels.pgd_step, x_adv, gradient, centre, norm)
    for other in (gradient.contiguous(), torch.cat([gradient, gradient], 1)[:, :3]):
        assert torch.equal(step_of(kernels.pgd_step, x_adv, other, centre, norm), expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e20, 1e38])
def test_the_size_of_the_gradient_does_not_matter(scale, norm):
    x_adv, gradient, centre = iterate((2, 3, 5, 7))
    gradient = gradient / gradient.abs().max() * scale
    expected = step_of(twin.pgd_step, x_adv, gradient, centre, norm)
    assert expected.isfinite().all()
    assert error(step_of(kernels.pgd_step, x_adv, gradient, centre, norm), expected) < BOUNDS[torch.float32]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_numbers_that_are_none_go_the_twin_s_way(where, bad, norm):
    given = iterate((2, 3, 5, 7))
    given[where][0, 1, 2, 3] = bad
    ours, expected = step_of(kernels.pgd_step, *given, norm), step_of(twin.pgd_step, *given, norm)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert error(ours.nan_to_num(0), expected.nan_to_num(0)) < BOUNDS[torch.float32]
    # The second image has nothing to do with the first's.
    assert ours[1].isfinite().all()


@pytest.mark.parametrize("step", [kernels.pgd_step, ops.pgd_step])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_follows_what_is_finite_of_a_gradient_and_the_signs_of_infinities(norm, step):
    x_adv, gradient, centre = iterate((4, 3, 5, 7))
    expected = gradient.clone()
    gradient[0, 1, 2, 3] = math.nan
    expected[0, 1, 2, 3] = 0
    gradient[1, 0, 0, 1], gradient[1, 2, 4, 5] = math.inf, -math.inf
    expected[1, 0, 0, 1], expected[1, 2, 4, 5] = 0, 0
    largest = expected[1].abs().max()
    expected[1, 0, 0, 1], expected[1, 2, 4, 5] = largest, -largest
    gradient[2], expected[2] = math.nan, 0
    gradient[3], expected[3] = -math.inf, -1
    ours = step_of(step, x_adv, gradient, centre, norm)
    assert error(ours, step_of(twin.pgd_step, x_adv, expected, centre, norm)) < BOUNDS[torch.float32]


def test_a_finite_gradient_is_left_as_it_is():
    gradient = torch.cat([torch.randn(3, 3, 5, 7), torch.zeros(1, 3, 5, 7), torch.full((1, 3, 5, 7), 1e-45)])
    assert torch.equal(ball.finite_gradient(gradient), gradient)


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_of_zero_moves_nothing(norm):
    x = images((2, 3, 5, 7))
    # L2: x - x is 0, and the centre stays exactly.
    assert torch.equal(step_of(kernels.pgd_step, x, torch.zeros_like(x), x, norm), x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "layout"), IMAGES)
def test_the_kernel_starts_where_the_twin_does(shape, layout, norm):
    x = images(shape, layout)
    with poisoned():
        ours = start_of(kernels.start_point, x, norm)
    expected = start_of(twin.start_point, x, norm)
    if norm == "linf" and DEVICE == "cpu":
        assert torch.equal(ours, expected)
    elif norm == "linf":  # a GPU may contract x + eps * v: one rounding of a number below 2
        assert (ours - expected).abs().max() <= 2**-23
    # Of the noise, which is what is drawn: sums in another order, and a rounding of x each.
    assert error(ours - x, expected - x) < 2e-6
    assert ours.stride() == x.stride()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_kernel_starts_where_the_twin_does_in_half_precision(dtype, norm):
    x = images((2, 3, 5, 7), torch.channels_last, dtype)
    with poisoned():
        ours = start_of(kernels.start_point, x, norm)
    # The noise is rounded before the sum is.
    assert error(ours, start_of(twin.start_point, x, norm)) < 2 * BOUNDS[dtype]


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_is_the_same_in_both_layouts_and_in_any_batch(norm):
    x, rows = images((3, 3, 5, 7)), torch.tensor([4, 2**32 - 1, 17], device=DEVICE)
    whole = start_of(kernels.start_point, x, norm, rows)
    assert torch.equal(start_of(kernels.start_point, x.to(memory_format=torch.channels_last), norm, rows), whole)
    assert torch.equal(start_of(kernels.start_point, x[2:], norm, rows[2:]), whole[2:])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("function", [ops.start_point, kernels.start_point])
def test_seeds_of_64_bits_all_differ(function, norm):
    x, rows = images((1, 1, 2, 3)), torch.tensor([3], device=DEVICE)
    seeds = (1, 1 | 1 << 32, 2**63 + 1, 2**64 - 1)
    starts = [function(x, rows, scalar(STEP), scalar(EPS), seed, norm) for seed in seeds]
    for i, start in enumerate(starts):
        assert all(not torch.equal(start, other) for other in starts[:i])


@pytest.mark.parametrize("norm", NORMS)
def test_one_launch_does_each(norm):
    given = iterate((2, 3, 5, 7), device="meta")
    with recording() as launches:
        step_of(kernels.pgd_step, *given, norm)
        start_of(kernels.start_point, given[0], norm)
    assert len(launches) == 2


@pytest.mark.parametrize(
    ("norm", "dtype", "layout"),
    [
        ("linf", torch.float32, LAYOUTS[0]),
        ("l2", torch.float32, LAYOUTS[1]),
        ("linf", torch.bfloat16, LAYOUTS[1]),
        ("l2", torch.float16, LAYOUTS[0]),
        ("linf", torch.float64, LAYOUTS[1]),
    ],
)
def test_the_operators_are_well_formed_and_give_the_twin(norm, dtype, layout):
    given = iterate((2, 3, 5, 7), layout, dtype, "cpu")
    rows, numbers = torch.arange(2), (scalar(STEP_SIZE, "cpu"), scalar(EPS, "cpu"))
    torch.library.opcheck(_pgd_step, (*given, *numbers, norm))
    torch.library.opcheck(_start_point, (given[0], rows, scalar(3, "cpu"), numbers[1], 5 - 2**63, norm))
    assert torch.equal(step_of(ops.pgd_step, *given, norm), step_of(twin.pgd_step, *given, norm))
    assert torch.equal(start_of(ops.start_point, given[0], norm), start_of(twin.start_point, given[0], norm))


@pytest.mark.parametrize("norm", NORMS)
def test_the_operators_keep_the_strides_of_the_images(norm):
    for shape in [(2, 1, 5, 7), (2, 3, 1, 1), (1, 1, 1, 1)]:
        x_adv, gradient, centre = iterate(shape, torch.channels_last, device="cpu")
        for other in (gradient, gradient.clone(memory_format=torch.contiguous_format)):
            given = (x_adv, other, centre, scalar(0.1, "cpu"), scalar(0.2, "cpu"), norm)
            # Of strides alone: the rest is checked above.
            torch.library.opcheck(_pgd_step, given, test_utils="test_faketensor")


@pytest.mark.no_cover  # dynamo traces
@pytest.mark.parametrize("norm", NORMS)
def test_the_operators_trace_in_one_graph(norm):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def attack(x, gradient, rows, step, step_size, eps):
        start = ops.start_point(x, rows, step, eps, SEED, norm)
        return ops.pgd_step(start, gradient, x, step_size, eps, norm)

    _, gradient, x = iterate((2, 3, 5, 7), torch.channels_last, device="cpu")
    for value in (1, 2):
        step, step_size, eps = torch.tensor(value), scalar(0.1 * value, "cpu"), scalar(0.2 * value, "cpu")
        start = twin.start_point(x, torch.arange(2), step, eps, SEED, norm)
        expected = twin.pgd_step(start, gradient, x, step_size, eps, norm)
        assert torch.equal(attack(x, gradient, torch.arange(2), step, step_size, eps), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_floats_do_for_the_scalars(norm):
    given = iterate((2, 3, 5, 7), device="cpu")
    assert torch.equal(ops.pgd_step(*given, STEP_SIZE, EPS, norm), step_of(ops.pgd_step, *given, norm))
    given = [x.double() for x in given]
    ours, expected = (f(*given, STEP_SIZE, EPS, norm) for f in (ops.pgd_step, twin.pgd_step))
    # float64 numbers are not rounded to float32 on the way; L2 divides a float in another way than a tensor.
    assert error(ours, expected) < 1e-15


def test_bad_input_is_refused_with_what_to_give():
    x = images((2, 3, 5, 7), device="cpu")
    rows, step = torch.arange(2), torch.tensor(3)
    eps = scalar(EPS, "cpu")
    for call, words in [
        (lambda: ops.pgd_step(x, x[:1], x, eps, eps, "linf"), "gradient"),
        (lambda: ops.pgd_step(x, x, x.double(), eps, eps, "linf"), "centre"),
        (lambda: ops.pgd_step(x, x, x, eps, eps, "l1"), "available: linf, l2"),
        (lambda: ops.pgd_step(x, x, x, eps[None], eps, "l2"), "step_size has shape"),
        (lambda: ops.pgd_step(x[0], x[0], x[0], eps, eps, "l2"), r"\[N, C, H, W\]"),
        (lambda: ops.start_point(x, rows[:1], step, eps, 0, "linf"), "rows"),
        (lambda: ops.start_point(x, rows.int(), step, eps, 0, "linf"), "int64"),
        (lambda: ops.start_point(x, rows, rows, eps, 0, "linf"), "step has shape"),
        (lambda: kernels.start_point(x.double(), rows, step, eps, 0, "linf"), "float64"),
        (lambda: kernels.start_point(x[:0], rows[:0], step, eps, 0, "linf"), "not empty"),
        (lambda: kernels.start_point(x[..., :3], rows, step, eps, 0, "linf"), r"give x.contiguous\(\)"),
        (lambda: kernels.pgd_step(x, x, x.to(memory_format=torch.channels_last), eps, eps, "l2"), "layout"),
    ]:
        with pytest.raises(UnsupportedInput, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
