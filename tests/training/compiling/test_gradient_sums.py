"""Gradients that meet are added by the batch-norms' kernels, where one reads or writes them anyway."""

from unittest.mock import patch

import pytest
import torch
from fastarat_kernels.dual_batch_norm import dual_batch_norm
from fastarat_kernels.implementations import TRITON
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

from fastarat.config.attack import AttackConfig
from fastarat.config.method import ATConfig
from fastarat.config.model import MODELS
from fastarat.methods.registry import build_method
from fastarat.models.registry import build_model
from fastarat.training.compiling.compiled import build_step
from fastarat.training.compiling.gradient_sums import add_in_batch_norms
from fastarat.training.step.train_step import EAGER, Controls, StepParts, train_step
from tests.helpers.captured import batch
from tests.helpers.step_parts import parts_of

pytestmark = pytest.mark.no_cover  # of traced steps

NARROW = {"widths": (8, 16), "strides": (1, 2), "num_blocks": (2, 1)}
NETS = {
    "resnet": ("fastarat.models.resnet:ResNet", NARROW),
    "wide": ("fastarat.models.wide_resnet:WideResNet", {"depth": 16, "width": 1}),
}


def parts(net: str) -> StepParts:
    """Those of AT with one attack step, whose backward passes have the same sums."""
    torch.manual_seed(0)
    with patch.dict(MODELS, tiny=NETS[net]):
        model = build_model("tiny", 10).to(memory_format=torch.channels_last).train()
    method = build_method(ATConfig(), model, (3, 16, 16)).train()
    return parts_of(model, method, AttackConfig(eps_255=8, step_255=2, steps=1), "fp32", kernels=TRITON)


def sums(graph: Graph) -> int:
    """How many sums of two images' size there are."""
    adds = graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    return sum(
        all(isinstance(term, torch.fx.Node) and term.meta["val"].dim() == 4 for term in add.args) for add in adds
    )


@pytest.mark.parametrize(
    ("net", "left", "taken"),
    [
        # Each in the attack's and in the update's backward pass: the blocks after the first begin at a batch-norm with
        # a residual; the stem's batch-norm has none, and does not write its gradient.
        ("resnet", 2 * 1, 2 * 2),
        # Four of the six blocks have a shortcut without a convolution. What is left is two sums of gradients, and six
        # forward.
        ("wide", 2 * (2 + 6), 2 * 4),
    ],
)
def test_kernels_take_the_sums_that_one_of_them_reads_or_writes_anyway(net, left, taken, monkeypatch):
    counts = []

    def record(graph, inputs):
        before = sums(graph.graph)
        add_in_batch_norms(graph.graph)
        graph.graph.lint()
        graph.recompile()
        counts.append((before, sums(graph.graph)))
        return make_boxed_func(graph.forward)

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: aot_autograd(fw_compiler=record))
    ours, expected = parts(net), parts(net)
    assert_same_step(ours, expected, "recorded")
    assert counts == [(left + taken, left)]


def test_a_kernel_takes_one_gradient_more_and_no_third():
    def net(x: torch.Tensor) -> torch.Tensor:
        weight = torch.ones(1, 4)
        skipped = x + 0.5
        return dual_batch_norm(x, weight, weight, groups=1, eps=1e-5)[0] + x + skipped

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(net(x).square().sum(), x)[0]

    x = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    traced = make_fx(gradient, tracing_mode="fake")(x)
    before = sums(traced.graph)
    add_in_batch_norms(traced.graph)
    traced.graph.lint()
    traced.recompile()
    assert before - sums(traced.graph) == 1
    torch.testing.assert_close(traced(x), gradient(x))


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_inductor_takes_what_is_left(net):
    assert_same_step(parts(net), parts(net), "inductor")


def assert_same_step(ours: StepParts, expected: StepParts, backend: str) -> None:
    """Compiled by `backend` a step does what it does eagerly."""
    step = build_step(ours, Controls.of(ours, learning_rate=0.1), "compile", unroll=True, backend=backend)
    loss = step(batch(0, ours))["loss"]
    expected_loss = train_step(expected, batch(0, expected), Controls.of(expected, learning_rate=0.1), EAGER)["loss"]
    # Recorded, the same operations on float32; inductor's code sums in another order.
    tolerance = {"rtol": 0, "atol": 0} if backend == "recorded" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(loss, expected_loss, **tolerance)
    for mine, theirs in zip(ours.parameters, expected.parameters, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
