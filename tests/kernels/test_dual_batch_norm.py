"""Dual batch-norm: its kernels give what the twin gives, and the twin what autograd and torch's batch-norm give."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastarat_kernels.dual_batch_norm import blocks, dual_batch_norm, op, twin
from fastarat_kernels.launch import UnsupportedInput, recording
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import grad

from tests.helpers.poison import poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-5
LIMIT = timedelta(minutes=2)
# Relative RMS error against the twin. float32: some ten roundings of 2^-24, in another order. bfloat16: the cast of the
# result, half a unit in the last place (2^-8 at most), or in the interpreter, which truncates, a whole one. float16:
# half a unit, 2^-11.
BOUND = {
    torch.float32: 2e-6,
    torch.bfloat16: 2**-8 if DEVICE == "cuda" else 2**-7,
    torch.float16: 2**-11,
}
# Statistics and sums are float32 whatever x is; sums of some 400 terms of either sign lose a digit.
SUM_BOUND = 5e-6
# shape, dtype, groups, sets of weight and bias, residual, ReLU. A tile has 32 channels at most: 640 and 2048 would be
# more programs, and the interpreter runs each of them, but no other ones than 96 and 128 are.
CASES = {
    "float32": ((4, 16, 14, 15), torch.float32, 2, 2, True, True),
    "bfloat16": ((4, 16, 14, 15), torch.bfloat16, 2, 1, False, True),
    "float16": ((4, 16, 14, 15), torch.float16, 1, 1, False, False),
    "3 channels": ((4, 3, 17, 13), torch.bfloat16, 2, 2, True, True),
    "64 channels": ((2, 64, 3, 5), torch.float16, 2, 1, False, True),
    "160 channels": ((2, 160, 2, 2), torch.bfloat16, 1, 1, True, True),
    "96 channels": ((4, 96, 2, 1), torch.float32, 2, 2, True, False),
    "128 channels": ((2, 128, 1, 1), torch.bfloat16, 1, 1, True, True),
    "a part of a tile": ((6, 40, 3, 3), torch.float16, 2, 2, True, True),
    "features": ((50, 33), torch.float32, 2, 1, False, True),
}
# The interpreter's lines are traced too: the cases below have every line of the kernels.
COUNTED = {"bfloat16", "float16", "a part of a tile", "features"}
case = pytest.mark.parametrize(
    ("shape", "dtype", "groups", "num_sets", "has_residual", "relu"),
    [
        pytest.param(*settings, id=name, marks=() if name in COUNTED else pytest.mark.no_cover)
        for name, settings in CASES.items()
    ],
)


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def tensor(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = DEVICE) -> Tensor:
    """Normal values; channels-last where there are sides."""
    x = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def inputs_of(
    shape: tuple[int, ...], dtype: torch.dtype, groups: int, num_sets: int, device: str = DEVICE
) -> dict[str, Any]:
    """x whose halves differ in mean and deviation, and the rest of what the functions take."""
    x = tensor(shape, dtype, device)
    x[: len(x) // groups] *= 3
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias = (tensor((num_sets, shape[1]), wide, device) for _ in range(2))
    return {"x": x + 1, "weight": weight, "bias": bias, "residual": tensor(shape, dtype, device)}


@pytest.fixture
def kernels(monkeypatch):
    """The launching functions (they import triton, so not at the top); tiles so small that a split has several."""
    monkeypatch.setattr(blocks, "TILE_BYTES", 2048)
    return pytest.importorskip("fastarat_kernels.dual_batch_norm.triton")


@pytest.fixture
def interpreted(kernels):
    """On a CPU the ops run the kernels, in the interpreter, and not their twins."""
    names = [f"batch_norm_{name}" for name in ("partials", "apply", "gradient_partials", "input_gradient")]
    for module in (kernels, twin):
        for name in names if DEVICE == "cpu" else ():
            getattr(op, name).register_kernel("cpu", getattr(module, name))
        if module is kernels:
            yield


@case
def test_the_merged_partials_are_mean_and_variance_of_each_half(
    kernels, shape, dtype, groups, num_sets, has_residual, relu
):
    x = inputs_of(shape, dtype, groups, num_sets)["x"]
    with poisoned():
        partials = kernels.batch_norm_partials(x, groups)
    statistics = twin.merge_partials(partials)
    rows = twin.as_rows(x, groups).double()
    assert torch.equal(partials[:, :, 0].sum(0), torch.full_like(partials[0, :, 0], rows.shape[1]))
    for i, expected in enumerate((rows.mean(1), rows.var(1, correction=0))):
        assert distance(statistics[i].double(), expected) < SUM_BOUND


def test_a_large_mean_leaves_the_variance_its_digits(kernels):
    x = tensor((4, 16, 14, 15)) * 0.1 + 100
    partials = kernels.batch_norm_partials(x, 2)
    y, _, statistics = kernels.batch_norm_apply(
        x, partials, *(torch.ones(1, 16, device=DEVICE),) * 2, None, 2, EPS, False
    )
    expected, exact = twin.batch_norm(
        x.double(), *(torch.ones(1, 16, device=DEVICE).double(),) * 2, None, False, 2, EPS
    )
    # E[x²] - E[x]² would be wrong by 100² * 2^-24 / 0.1² = 6 %.
    assert distance(statistics[1].double(), exact[1]) < 1e-5
    # An error of half a unit of the mean, 2^-19, is 2e-5 of the deviation.
    assert distance(y.double(), expected) < 4e-5


@case
def test_the_forward_kernel_gives_what_the_twin_gives(kernels, shape, dtype, groups, num_sets, has_residual, relu):
    given = inputs_of(shape, dtype, groups, num_sets)
    partials = twin.batch_norm_partials(given["x"], groups)
    residual = given["residual"] if has_residual else None
    arguments = (given["x"], partials, given["weight"], given["bias"], residual, groups, EPS, relu)
    with poisoned():
        y, bits, statistics = kernels.batch_norm_apply(*arguments)
    y_twin, bits_twin, statistics_twin = twin.batch_norm_apply(*arguments)
    assert distance(y, y_twin) < BOUND[dtype] and y.stride() == y_twin.stride()
    assert distance(statistics, statistics_twin) < SUM_BOUND
    assert torch.equal(bits, bits_twin) and bool(bits.numel()) == (relu and has_residual)


def test_partials_of_many_processes_and_empty_ones_are_merged(kernels):
    given = inputs_of((10, 16, 3, 3), torch.float32, 1, 1)
    pieces = given["x"].split(1)
    full = torch.cat([twin.batch_norm_partials(piece, 1) for piece in pieces])
    partials = torch.cat([full[:5], torch.zeros(30, 1, 3, 16, device=DEVICE), full[5:]])
    y, _, statistics = kernels.batch_norm_apply(
        given["x"], partials, given["weight"], given["bias"], None, 1, EPS, False
    )
    expected, found = twin.batch_norm(given["x"], given["weight"], given["bias"], None, False, 1, EPS)
    assert distance(y, expected) < BOUND[torch.float32]
    assert distance(statistics, found) < SUM_BOUND


@case
def test_the_backward_kernels_give_what_the_twins_give(kernels, shape, dtype, groups, num_sets, has_residual, relu):
    compare_with_twins(kernels, shape, dtype, groups, num_sets, has_residual, relu, meets=False)


@case
def test_they_add_another_gradient_as_the_twins_do(kernels, shape, dtype, groups, num_sets, has_residual, relu):
    compare_with_twins(kernels, shape, dtype, groups, num_sets, has_residual, relu, meets=True)


def compare_with_twins(
    kernels: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    groups: int,
    num_sets: int,
    has_residual: bool,
    relu: bool,
    *,
    meets: bool,
) -> None:
    """Both kernels of the backward pass; where another gradient `meets`, the one that writes g reads it, or without g
    the other one adds it to dx."""
    given = inputs_of(shape, dtype, groups, num_sets)
    x, weight, bias, dy = given["x"], given["weight"], given["bias"], given["residual"]
    statistics = twin.batch_norm(x, weight, bias, None, False, groups, EPS)[1]
    rows = x.numel() // x.shape[1]
    bits = x.new_empty(0, dtype=torch.uint8)
    if has_residual and relu:
        bits = twin.pack(torch.rand(rows, x.shape[1], device=DEVICE) > 0.5)
    common = (x, statistics, weight, bias)
    settings = (groups, EPS, relu and not has_residual)
    other = tensor(shape, dtype) if meets else None
    read, added = (other, None) if bits.numel() else (None, other)
    with poisoned():
        sums, g = kernels.batch_norm_gradient_partials(dy, *common, bits, *settings, read)
    sums_twin, g_twin = twin.batch_norm_gradient_partials(dy, *common, bits, *settings, read)
    assert distance(sums.sum(0), sums_twin.sum(0)) < SUM_BOUND
    if read is None:
        assert torch.equal(g, g_twin)
    else:
        assert distance(g, g_twin) < BOUND[dtype]
    assert g.stride() == g_twin.stride()
    arguments = (g if bits.numel() else dy, *common, sums, rows // groups, *settings, added)
    with poisoned():
        dx, totals = kernels.batch_norm_input_gradient(*arguments)
    dx_twin, totals_twin = twin.batch_norm_input_gradient(*arguments)
    assert distance(dx, dx_twin) < BOUND[dtype] and dx.stride() == dx_twin.stride()
    torch.testing.assert_close(totals, totals_twin)


@pytest.mark.no_cover  # the kernels' lines are counted above
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.usefixtures("interpreted")
def test_training_through_the_kernels_gives_the_gradients_of_autograd(dtype):
    forms = ((True, True), (False, True), (True, False))
    if dtype != torch.float32:  # the formats differ in casts alone
        forms = forms[:1]
    for has_residual, relu in forms:
        inputs = inputs_of((2, 16, 7, 5), dtype, 2, 2)
        compare_with_autograd(inputs, 2, has_residual, relu, BOUND[dtype])


def compare_with_autograd(inputs: dict[str, Tensor], groups: int, has_residual: bool, relu: bool, bound: float) -> None:
    """y and all gradients of `dual_batch_norm` against autograd through the twin on the same values in float64."""
    used = {name: value for name, value in inputs.items() if has_residual or name != "residual"}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in used.items()}
    exact = {name: value.detach().double().requires_grad_() for name, value in used.items()}
    y, statistics = dual_batch_norm(**leaves, relu=relu, groups=groups, eps=EPS)
    y_exact, statistics_exact = twin.batch_norm(**{"residual": None} | exact, relu=relu, groups=groups, eps=EPS)
    assert not statistics.requires_grad and distance(statistics.double(), statistics_exact) < max(bound**2, SUM_BOUND)
    assert y.dtype == inputs["x"].dtype and distance(y.detach().double(), y_exact.detach()) < bound
    dy = torch.randn_like(y)
    ours = grad(y, list(leaves.values()), dy)
    theirs = grad(y_exact, list(exact.values()), dy.double())
    for name, our, their in zip(leaves, ours, theirs, strict=True):
        assert our.dtype == leaves[name].dtype
        assert distance(our.double(), their) < bound, name


@pytest.mark.parametrize(("groups", "num_sets"), [(1, 1), (2, 1), (2, 2)])
def test_the_twin_gives_the_gradients_of_autograd(groups, num_sets):
    for has_residual, relu, shape in product((True, False), (True, False), ((4, 3, 5, 2), (6, 16))):
        # Two float64 computations.
        inputs = inputs_of(shape, torch.float64, groups, num_sets, "cpu")
        compare_with_autograd(inputs, groups, has_residual, relu, 1e-12)


def test_each_half_is_what_torch_makes_of_it_alone():
    inputs = inputs_of((6, 5, 4, 3), torch.float64, 2, 2, "cpu")
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    y, statistics = dual_batch_norm(x, weight, bias, groups=2, eps=EPS)
    halves = []
    for i, half in enumerate(x.chunk(2)):
        mean, variance = torch.zeros(2, 5, dtype=torch.float64)
        halves.append(F.batch_norm(half, mean, variance, weight[i], bias[i], True, 1.0, EPS))
        count = half.numel() // 5
        torch.testing.assert_close(statistics[:, i], torch.stack([mean, variance * (count - 1) / count]))
    torch.testing.assert_close(y, torch.cat(halves))


def test_gradients_agree_with_finite_differences():
    for num_sets, has_residual, relu in ((2, True, True), (1, False, True), (2, True, False)):
        inputs = inputs_of((4, 3, 2, 2), torch.float64, 2, num_sets, "cpu")
        values = [value.requires_grad_() for name, value in inputs.items() if has_residual or name != "residual"]
        assert torch.autograd.gradcheck(lambda *v: dual_batch_norm(*v, relu=relu, groups=2, eps=EPS)[0], values)  # noqa: B023


def test_an_expanded_gradient_and_a_plain_layout_are_taken():
    inputs = inputs_of((4, 3, 5, 2), torch.float64, 2, 1, "cpu")
    x = inputs["x"].contiguous().requires_grad_()
    y, _ = dual_batch_norm(x, inputs["weight"], inputs["bias"], relu=True, groups=2, eps=EPS)
    (dx,) = grad(y.sum(), x)
    (expected,) = grad(twin.batch_norm(x, inputs["weight"], inputs["bias"], None, True, 2, EPS)[0].sum(), x)
    torch.testing.assert_close(dx, expected)


@pytest.mark.no_cover  # torch traces
@pytest.mark.parametrize("mode", ["residual, relu", "relu", "neither"])
def test_the_ops_keep_the_rules_of_pytorch_ops(mode):
    inputs = inputs_of((4, 9, 3, 2), torch.float32, 2, 2, "cpu")
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    residual, relu = (inputs["residual"] if mode == "residual, relu" else None), mode != "neither"
    recompute = relu and residual is None
    partials = op.batch_norm_partials(x, 2)
    y, bits, statistics = op.batch_norm_apply(x, partials, weight, bias, residual, 2, EPS, relu, "")
    common = (y, x, statistics, weight, bias)
    sums, _ = op.batch_norm_gradient_partials(*common, bits, 2, EPS, recompute)
    torch.library.opcheck(op.batch_norm_partials, (x, 2))
    torch.library.opcheck(op.batch_norm_gradient_partials, (*common, bits, 2, EPS, recompute))
    torch.library.opcheck(op.batch_norm_input_gradient, (*common, sums, 12, 2, EPS, recompute))
    leaves = [None if v is None else v.requires_grad_() for v in (x, weight, bias, residual)]
    torch.library.opcheck(op.batch_norm_apply, (leaves[0], partials, *leaves[1:], 2, EPS, relu, ""))


class Net(nn.Module):
    """Two convolutions, each with a dual batch-norm; the second adds the first's output."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)])
        self.weight, self.bias = nn.Parameter(torch.rand(2, 2, 8) + 0.5), nn.Parameter(torch.randn(2, 2, 8))

    def forward(self, x: Tensor, process_group: str = "") -> Tensor:
        h = None
        for convolution, weight, bias in zip(self.convolutions, self.weight, self.bias, strict=True):
            x = convolution(x if h is None else h)
            h, _ = dual_batch_norm(x, weight, bias, h, True, groups=2, eps=EPS, process_group=process_group)
        assert h is not None
        return h.mean((2, 3)).square().sum()


def step(net: Net, x: Tensor, zero: Tensor, process_group: str = "") -> tuple[Tensor, ...]:
    """A step of an attack on the input, then the gradients of the parameters on its result."""
    for _ in range(2):
        leaf = x.detach() + zero
        (dx,) = grad(net(leaf, process_group), [leaf])
        x = x + 0.1 * dx
    return dx, *grad(net(x.detach(), process_group), list(net.parameters()))


@contextmanager
def processes(folder: Path, rank: int = 0, number: int = 1) -> Iterator[str]:
    """Join a process group of `number` that meets in `folder`; gives its name."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=number, timeout=LIMIT)
    try:
        yield dist.group.WORLD.group_name
    finally:
        dist.destroy_process_group()


@pytest.mark.no_cover  # dynamo traces
@pytest.mark.parametrize("statistics", ["batch", "of a process group"])
def test_attack_and_training_step_are_one_graph_with_the_same_bits(statistics, tmp_path):
    net = Net().to(memory_format=torch.channels_last)
    x, zero = tensor((4, 3, 6, 5), device="cpu"), torch.zeros((), requires_grad=True)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=False)
    group = processes(tmp_path) if statistics == "of a process group" else nullcontext("")
    with group as name, torch._dynamo.config.patch(trace_autograd_ops=True):
        ours, eager = compiled(net, x, zero, name), step(net, x, zero, name)
    assert all(torch.equal(our, their) for our, their in zip(ours, eager, strict=True))


def of_two_processes(rank: int, net: Net, x: Tensor, folder: Path) -> tuple[Tensor, ...]:
    """A step of one of two processes, with its rows of each half."""
    mine = torch.cat([half.chunk(2)[rank] for half in x.chunk(2)])
    with processes(folder, rank, 2) as name:
        return step(net, mine, torch.zeros((), requires_grad=True), name)


def second_process(_: int, net: Net, x: Tensor, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(of_two_processes(1, net, x, folder), folder / "second.pt")


def test_two_processes_with_half_the_rows_each_are_one_with_all(tmp_path):
    net = Net().double().to(memory_format=torch.channels_last)
    x = tensor((8, 3, 6, 5), torch.float64, "cpu")
    # A fork has torch already; but autograd's threads, which a GPU has, do not outlive one.
    method = "fork" if DEVICE == "cpu" else "spawn"
    other = torch.multiprocessing.start_processes(second_process, (net, x, tmp_path), join=False, start_method=method)
    first = of_two_processes(0, net, x, tmp_path)
    while not other.join():
        pass
    second = torch.load(tmp_path / "second.pt")
    dx, *parameters = step(net, x, torch.zeros((), requires_grad=True))
    halves = [torch.cat(parts) for parts in zip(first[0].chunk(2), second[0].chunk(2), strict=True)]
    torch.testing.assert_close(torch.cat(halves), dx)
    # The loss is a sum over images: what each process finds of the parameters' gradients adds up.
    for whole, one, other in zip(parameters, first[1:], second[1:], strict=True):
        torch.testing.assert_close(one + other, whole)


def test_recorded_launches_cover_every_kernel(kernels):
    with recording() as launches:
        for _, start in kernels.configurations():
            start()
    names = {"partials", "apply", "gradient_partials", "input_gradient"}
    assert {launch.kernel.__name__ for launch in launches} == {f"_{name}_kernel" for name in names}


@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_traced_for_a_gpu_has_the_shapes_and_strides_that_the_kernels_give(kernels, groups):
    def outputs(device: str, functions: Any) -> list[tuple[Any, ...]]:
        x = torch.empty(256, 160, 8, 8, dtype=torch.bfloat16, device=device).to(memory_format=torch.channels_last)
        weight = torch.empty(1, 160, device=device)
        partials = functions.batch_norm_partials(x, groups)
        y, bits, statistics = functions.batch_norm_apply(x, partials, weight, weight, x, groups, EPS, True)
        common = (y, x, statistics, weight, weight)
        sums, g = functions.batch_norm_gradient_partials(*common, bits, groups, EPS, False)
        last = functions.batch_norm_input_gradient(*common, sums, 9, groups, EPS, False)
        return [(z.shape, z.stride(), z.dtype) for z in (partials, y, bits, statistics, sums, g, *last)]

    with recording():
        launched = outputs("meta", kernels)
    with FakeTensorMode():
        assert outputs("cuda", op) == launched


WRONG = {
    "halves": ({"x": torch.zeros(3, 4)}, "3 rows are not 2 equal halves"),
    "empty": ({"x": torch.zeros(0, 4)}, "at least one row in each half"),
    "dimensions": ({"x": torch.zeros(2, 4, 3)}, r"give \[N, C\] or \[N, C, H, W\]"),
    "groups": ({"groups": 3}, "groups is 3: give 1 or 2"),
    "sets": ({"weight": torch.ones(3, 4)}, r"give torch.float32 \[2 or 1, 4\]"),
    "affine": ({"bias": torch.ones(1, 4).half()}, r"bias is torch.float16"),
    "unlike": ({"bias": torch.ones(2, 4)}, "give both alike"),
    "residual": ({"residual": torch.zeros(2, 3)}, "give both alike"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_with_what_would(wrong, message):
    right = {"x": torch.zeros(2, 4), "weight": torch.ones(1, 4), "bias": torch.ones(1, 4), "groups": 2, "eps": EPS}
    dual_batch_norm(**right)
    with pytest.raises(UnsupportedInput, match=message):
        dual_batch_norm(**right | wrong)


def test_the_kernels_refuse_other_layouts_and_types(kernels):
    with pytest.raises(UnsupportedInput, match="channels-last"):
        kernels.batch_norm_partials(torch.zeros(2, 3, 4, 4), 1)
    with pytest.raises(UnsupportedInput, match="float64"):
        kernels.batch_norm_partials(torch.zeros(2, 3).double(), 1)
    x = tensor((2, 3, 4, 4))
    one = torch.ones(1, 3, device=DEVICE)
    with pytest.raises(UnsupportedInput, match="residual"):
        kernels.batch_norm_apply(x, twin.batch_norm_partials(x, 1), one, one, x.contiguous(), 1, EPS, True)
