"""Gradients over processes: a few buckets, each on its way as soon as the backward pass has it."""

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from fastarat.attacks.pgd import FP16_FACTOR
from fastarat.common.distributed import World
from fastarat.config.attack import AttackConfig
from fastarat.config.method import ATConfig
from fastarat.methods.registry import build_method
from fastarat.models.registry import build_model
from fastarat.training.compiling.compiled import build_step
from fastarat.training.compiling.graph_passes import OF_SEVERAL, GraphPasses
from fastarat.training.step import gradients, train_step
from fastarat.training.step.gradients import in_buckets, mean_gradients
from fastarat.training.step.precision import Dtype
from fastarat.training.step.train_step import Controls, StepParts
from tests.helpers.captured import batch
from tests.helpers.groups import alone, first_of_two
from tests.helpers.step_parts import nets_of_one_block, parts_of

pytestmark = pytest.mark.no_cover  # of compiled steps


@pytest.fixture
def world_of_one() -> Iterator[World]:
    with alone() as world:
        yield world


@pytest.fixture
def world_of_two() -> Iterator[World]:
    with first_of_two() as world:
        yield world


def test_buckets_go_from_the_last_parameter_to_the_first():
    assert in_buckets([1, 2, 3, 4, 5], least=6) == [[4, 3], [2, 1, 0]]
    assert in_buckets([2, 9, 2, 2, 2], least=4) == [[4, 3], [2, 1], [0]]
    assert in_buckets([]) == []


def test_the_buckets_of_a_resnet_18_are_few_and_the_exposed_one_is_small():
    net = build_model("resnet18", 10)
    sizes = [parameter.nbytes for parameter in net.parameters()]
    buckets = in_buckets(sizes)
    assert sorted(i for bucket in buckets for i in bucket) == list(range(len(sizes)))
    totals = [sum(sizes[i] for i in bucket) / 2**20 for bucket in buckets]
    assert len(totals) <= 6 and totals[-1] < 8 and sum(totals) > 40


def test_means_have_the_shapes_and_dtypes_of_their_gradients(world_of_one, monkeypatch):
    monkeypatch.setattr(gradients, "in_buckets", lambda sizes: in_buckets(sizes, least=32))
    given = [torch.randn(3, 2).t(), torch.randn(()), torch.randn(4, 2, 1, 1).to(memory_format=torch.channels_last)]
    for mine, own in zip(mean_gradients(given, world_of_one), given, strict=True):
        assert torch.equal(mine, own) and mine.dtype == own.dtype
    for mine, own in zip(mean_gradients(given, world_of_one, bf16=True), given, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, own, rtol=2**-8, atol=0)  # half a last place of 8 bits
        assert torch.equal(mine, own.bfloat16().float())


def test_the_factor_on_the_attack_of_fp16_travels_with_the_gradients(world_of_one, monkeypatch):
    """Another process has halved its own: all take the same steps from here, and from a checkpoint of any of them."""

    def mean(given: list[torch.Tensor], world: World, *, bf16: bool) -> list[torch.Tensor]:
        sent.append(given)
        return [*given[:-1], given[-1] * 0.75]

    sent: list[list[torch.Tensor]] = []
    monkeypatch.setattr(train_step, "mean_gradients", mean)
    parts, controls = steps_parts(world_of_one, "fp16")
    train_step.train_step(parts, batch(0, parts), controls)
    (given,) = sent
    assert len(given) == len(parts.parameters) + 1 and float(parts.precision.attack_factor) == FP16_FACTOR / 2


def steps_parts(world: World, precision: Dtype = "fp32") -> tuple[StepParts, Controls]:
    with nets_of_one_block():
        net = build_model("tiny", 10).to(memory_format=torch.channels_last).train()
        method = build_method(ATConfig(), net, (3, 16, 16)).train()
    parts = parts_of(net, method, AttackConfig(eps_255=8, step_255=2, steps=1), precision, world=world)
    return parts, Controls.of(parts, learning_rate=0.1)


def assert_overlapped(order: list[str], num_buckets: int) -> None:
    """All but the last all-reduce start while gradients are to come, and none is waited for before the last of them."""
    starts, waits, gradients = (
        [i for i, name in enumerate(order) if word in name]
        for word in ("all_reduce", "wait_tensor", "convolution_backward")
    )
    assert len(starts) == len(waits) == num_buckets
    for start, following in pairwise(starts):
        assert any(start < gradient < following for gradient in gradients)
    assert gradients[-1] < starts[-1] and gradients[-1] < waits[0]


@pytest.fixture
def in_three_buckets(monkeypatch) -> int:
    """The sizes of a net of one block: convolutions of 1.7, 9 and 9 kB."""
    monkeypatch.setattr(gradients, "in_buckets", lambda sizes: in_buckets(sizes, least=8192))
    return 3


def test_in_the_traced_graph_a_bucket_starts_before_later_gradients_are_computed(
    world_of_two, in_three_buckets, monkeypatch
):
    orders = []

    def record(graph, inputs):
        GraphPasses(*OF_SEVERAL)(graph.graph)
        graph.graph.lint()
        orders.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: aot_autograd(fw_compiler=record))
    parts, controls = steps_parts(world_of_two)
    build_step(parts, controls, "compile", unroll=True, backend="recorded")(batch(0, parts))
    (order,) = orders
    assert_overlapped(order, in_three_buckets)


@pytest.mark.slow
def test_compiled_code_keeps_that_order(world_of_two, in_three_buckets):
    from torch._inductor.utils import run_and_get_code

    parts, controls = steps_parts(world_of_two)
    step = build_step(parts, controls, "compile", unroll=True)
    _, (code,) = run_and_get_code(step, batch(0, parts))
    calls = code[code.index("def call(") :]
    order = re.findall(r"torch\.ops\.[\w.]*(?:all_reduce_?|wait_tensor|convolution_backward)\.default\(", calls)
    assert_overlapped(order, in_three_buckets)
