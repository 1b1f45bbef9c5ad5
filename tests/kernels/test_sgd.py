"""Fused SGD over flat buffers: the Triton kernel and the operator against the twin, and it against PyTorch."""

from collections.abc import Callable
from itertools import cycle, product

import pytest
import torch
from fastarat_kernels.launch import UnsupportedInput
from fastarat_kernels.sgd import sgd, twin
from fastarat_kernels.sgd import triton as kernels
from torch import Tensor

from fastarat.training.step.sgd import sgd_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-2
CHANGED = ("parameters", "momenta", "shadow", "average")
# Four float32 operations, in another order or contracted: 6e-8 each. Shadow weights are rounded once more; bf16:
# one unit in the last place, since the interpreter truncates.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}


def scalar(value: float, device: str = DEVICE) -> Tensor:
    return torch.tensor(value, device=device)


def buffers(
    n: int,
    gradient_dtype: torch.dtype = torch.float32,
    shadow_dtype: torch.dtype | None = None,
    average: bool = False,
    device: str = DEVICE,
) -> dict[str, Tensor]:
    """Random parameters, gradients and momenta, and what else is asked for."""
    x = torch.randn(4, n)
    found = {"parameters": x[0].clone(), "gradients": x[1].to(gradient_dtype), "momenta": x[2].clone()}
    if shadow_dtype is not None:
        found["shadow"] = torch.full((n,), float("nan"), dtype=shadow_dtype)
    if average:
        found["average"] = x[3].clone()
    return {name: buffer.to(device) for name, buffer in found.items()}


def updated(update: Callable[..., None], state: dict[str, Tensor], **options: Tensor) -> dict[str, Tensor]:
    """A copy of the state after one update."""
    state = {name: buffer.clone() for name, buffer in state.items()}
    learning_rate = scalar(0.1, state["parameters"].device.type)
    update(**state, learning_rate=learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options)
    return state


def errors(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative root mean square error of each buffer, over the bound of its dtype: 1 is just allowed."""

    def error(a: Tensor, b: Tensor) -> float:
        return float((a.double() - b.double()).norm() / b.double().norm()) / BOUNDS[a.dtype]

    return {name: error(ours[name], expected[name]) for name in CHANGED if name in expected}


SHADOWS, GRADIENTS = [None, torch.bfloat16, torch.float16], [torch.float32, torch.bfloat16, torch.float16]
# Every shadow with every gradient, with and without an average, over the lengths in turn.
UPDATES = [
    (n, gradient, shadow, average)
    for (average, gradient, shadow), n in zip(product([False, True], GRADIENTS, SHADOWS), cycle([1, 5, 2048, 4100]))
]


@pytest.mark.parametrize(("n", "gradient_dtype", "shadow_dtype", "average"), UPDATES)
def test_the_kernel_gives_the_update_of_the_twin(n, gradient_dtype, shadow_dtype, average):
    state = buffers(n, gradient_dtype, shadow_dtype, average)
    options = {"scale": scalar(0.25)} | ({"share": scalar(0.01)} if average else {})
    found = errors(updated(kernels.sgd, state, **options), updated(twin.sgd, state, **options))
    assert max(found.values()) < 1, found


@pytest.mark.parametrize("update", [kernels.sgd, twin.sgd])
def test_five_steps_are_those_of_torch_optim(update):
    state = buffers(300)
    parameter = torch.nn.Parameter(state["parameters"].clone())
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    state["momenta"].zero_()
    for _ in range(5):
        state["gradients"] = torch.randn(300, device=DEVICE)
        parameter.grad = state["gradients"].clone()
        optimizer.step()
        state = updated(update, state)
    expected = {"parameters": parameter.detach(), "momenta": optimizer.state[parameter]["momentum_buffer"]}
    found = errors(state, expected)
    assert max(found.values()) < 1, found


@pytest.mark.parametrize("keep", [None, 0.0, 1.0])
def test_the_twin_is_the_trainers_update(keep):
    state = buffers(300, device="cpu")
    options = {} if keep is None else {"keep": scalar(keep, "cpu")}
    ours = updated(twin.sgd, state, **options)
    expected = {name: buffer.clone() for name, buffer in state.items()}
    parameters, gradients, momenta = ([expected[name]] for name in ("parameters", "gradients", "momenta"))
    sgd_(parameters, gradients, momenta, scalar(0.1, "cpu"), MOMENTUM, WEIGHT_DECAY, **options)
    found = errors(ours, expected)
    assert max(found.values()) < 1, found


@pytest.mark.parametrize("update", [kernels.sgd, twin.sgd])
def test_a_skipped_step_changes_nothing_even_if_gradients_overflowed(update):
    state = buffers(300, shadow_dtype=torch.float16, average=True)
    state["shadow"].fill_(3)
    state["gradients"][7] = float("inf")
    after = updated(update, state, keep=scalar(0.0), share=scalar(0.5))
    for name in CHANGED:
        assert torch.equal(after[name], state[name]), name


@pytest.mark.parametrize("update", [kernels.sgd, twin.sgd])
def test_a_kept_step_is_a_step(update):
    state = buffers(300)
    kept, plain = updated(update, state, keep=scalar(1.0)), updated(update, state)
    assert torch.equal(kept["parameters"], plain["parameters"]) and torch.equal(kept["momenta"], plain["momenta"])


@pytest.mark.parametrize("update", [kernels.sgd, twin.sgd])
def test_a_share_of_0_leaves_the_average_and_of_1_takes_the_new_weights(update):
    state = buffers(300, average=True)
    assert torch.equal(updated(update, state, share=scalar(0.0))["average"], state["average"])
    after = updated(update, state, share=scalar(1.0))
    # a + (p - a) is p up to the rounding of the difference.
    assert (after["average"] - after["parameters"]).abs().max() < 1e-6


def test_the_shadow_weights_are_the_new_weights_rounded():
    state = updated(twin.sgd, buffers(300, shadow_dtype=torch.bfloat16))
    assert torch.equal(state["shadow"], state["parameters"].bfloat16())


def test_the_operator_is_the_twin_in_float64_too():
    state = {name: buffer.double() for name, buffer in buffers(50, average=True, device="cpu").items()}
    share = scalar(0.5, "cpu")
    ours, expected = updated(sgd, state, share=share), updated(twin.sgd, state, share=share)
    assert all(torch.equal(ours[name], expected[name]) for name in state)


@pytest.mark.parametrize("full", [False, True])
def test_the_operator_keeps_the_contract_of_pytorch(full):
    state = buffers(6, torch.bfloat16, torch.float16 if full else None, full, "cpu")
    keys = ("keep", "scale", "share") if full else ()
    scalars = {name: scalar(0.5, "cpu") for name in keys}
    arguments = {"learning_rate": scalar(0.1, "cpu"), "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    absent = dict.fromkeys(("keep", "scale", "shadow", "average", "share"))
    torch.library.opcheck(torch.ops.fastarat.sgd, (), absent | state | arguments | scalars)


def test_a_full_graph_may_hold_the_update():
    state = buffers(50, torch.bfloat16, torch.float16, True, "cpu")
    share = scalar(0.5, "cpu")
    compiled = torch.compile(sgd, fullgraph=True, backend="aot_eager")
    ours, expected = updated(compiled, state, share=share), updated(sgd, state, share=share)
    assert all(torch.equal(ours[name], expected[name]) for name in state)


@pytest.mark.parametrize("update", [kernels.sgd, twin.sgd, sgd])
@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"gradients": torch.ones(7)}, "flat buffers of one length"),
        ({"momenta": torch.ones(2, 3)}, "flat buffers of one length"),
        ({"average": torch.ones(6)}, "average and share together"),
        ({"share": torch.ones(())}, "average and share together"),
    ],
)
def test_buffers_that_do_not_belong_together_are_refused(update, change, fix):
    with pytest.raises(UnsupportedInput, match=fix):
        updated(update, buffers(6, device="cpu") | change)


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        (
            {"parameters": torch.ones(6, device=DEVICE, dtype=torch.float64)},
            "parameters is torch.float64: the kernel takes float32",
        ),
        ({"shadow": torch.ones(6)}, "shadow is torch.float32: the kernel takes bfloat16, float16"),
        ({"momenta": torch.ones(12, device=DEVICE)[::2]}, "give a dense tensor"),
        ({"keep": torch.ones(2)}, "keep has 2 elements"),
        ({"scale": torch.ones((), device="meta")}, "scale has 1 elements on meta: give one on"),
    ],
)
def test_the_kernel_refuses_what_it_cannot_read(change, fix):
    with pytest.raises(UnsupportedInput, match=fix):
        kernels.sgd(**buffers(6) | {"learning_rate": scalar(0.1), "momentum": 0.9, "weight_decay": 0.0} | change)
