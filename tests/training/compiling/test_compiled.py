"""The compiled step is the eager step: one graph whatever the method, format and attack, and the same numbers."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from fastarat.common.distributed import World
from fastarat.common.errors import WorkError
from fastarat.config.attack import AttackConfig
from fastarat.config.method import (
    ARATConfig,
    ARRESTConfig,
    ATConfig,
    LBGATConfig,
    MARTConfig,
    StandardConfig,
    TRADESConfig,
)
from fastarat.config.recipes import recipe
from fastarat.config.training import OptimizerConfig
from fastarat.data.loading.loader import Batch
from fastarat.data.open import open_dataset
from fastarat.methods.registry import build_method
from fastarat.models.registry import build_model
from fastarat.training.build import build_training
from fastarat.training.compiling.captured import CapturedStep
from fastarat.training.compiling.compiled import MOST_UNROLLED, StepBySize, _compiler, build_step, unrolled_size
from fastarat.training.compiling.compiler_options import num_kept
from fastarat.training.step.train_step import Controls
from tests.helpers.step_parts import nets_of_one_block, parts_of

ATTACK = AttackConfig(eps_255=20, step_255=8, steps=2)
METHODS = {
    "at": ATConfig(),
    "arat": ARATConfig(),
    "no stop-gradient": ARATConfig(stop_gradient="none"),
    "adversarial side": ARATConfig(stop_gradient="adversarial"),
    "symmetric": ARATConfig(stop_gradient="symmetric"),
    "no predictor": ARATConfig(predictor=False),
    "shared": ARATConfig(batch_norm="shared"),
    "mixed": ARATConfig(batch_norm="mixed"),
    "fixed weights": ARATConfig(auto_balance=False),
    "mse": ARATConfig(metric="mse"),
    "kl": ARATConfig(metric="kl"),
    "standard": StandardConfig(),
    "trades": TRADESConfig(label_smoothing=0.1),
    "mart": MARTConfig(),
    "lbgat": LBGATConfig(beta=6, teacher="digits"),
    "arrest": ARRESTConfig(threshold=0.02),
}
ATTACKS = {
    "two steps": ATTACK,
    "one step": replace(ATTACK, steps=1),
    "l2": replace(ATTACK, norm="l2", eps_255=100, step_255=40),
    "no start": replace(ATTACK, start="none"),
    "published code": replace(ATTACK, start="published-code"),
    "frozen statistics": replace(ATTACK, batch_norm="frozen"),
    "running statistics": replace(ATTACK, batch_norm="eval"),
    "kl objective": replace(ATTACK, objective="kl"),
    "margin objective": replace(ATTACK, objective="margin"),
    "trades": replace(ATTACK, start="gaussian", batch_norm="eval", objective="kl"),
    "n-fgsm": replace(ATTACK, steps=1, start_scale=2, project=False),
    "none": replace(ATTACK, steps=0, start="none"),
}
# Tracing takes seconds: the fast run has each kind of method, attack, format and optimizer once, beside one another.
# What they update in place AOTAutograd rewrites alike: one of them, with the format that updates the most, goes through
# it, and so do the fused kernels below.
TOGETHER = {
    "at": (ATTACKS["one step"], "fp16", "aot_eager", "muon"),
    "arat": (replace(ATTACKS["l2"], steps=1), "bf16", "eager", "muon"),
    "trades": (replace(ATTACKS["trades"], steps=1), "fp32", "eager", "sgd"),
    "lbgat": (ATTACKS["two steps"], "fp32", "eager", "sgd"),
    "arrest": (ATTACKS["n-fgsm"], "fp32", "eager", "sgd"),
}
pytestmark = pytest.mark.no_cover  # it would take as long again as the tracing, whose own functions it counts


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


def batches(num: int, dtype: torch.dtype = torch.float32, size: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.rand(8, 3, size, size, generator=generator, dtype=dtype).contiguous(
                memory_format=torch.channels_last
            ),
            torch.randint(0, 3, (8,), generator=generator),
            torch.arange(8),
        )
        for _ in range(num)
    ]


def trained(
    mode,
    method=METHODS["arat"],
    attack=ATTACK,
    precision="fp32",
    kernels=PYTORCH,
    num_steps=20,
    optimizer="sgd",
    **options,
):
    """The losses of some steps with a changing rate, and the weights and statistics after them."""
    torch.manual_seed(0)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    with nets_of_one_block():
        net = build_model("digits", 3, batch_norm=method.batch_norm).to(dtype, memory_format=torch.channels_last)
        made = build_method(method, net.train(), (3, 8, 8)).to(dtype).train()
    made.begin_epoch(torch.tensor(0.4))
    parts = parts_of(net, made, attack, precision, kernels=kernels, optimizer=OptimizerConfig(name=optimizer))
    controls = Controls.of(parts, learning_rate=0.1)
    step = build_step(parts, controls, mode, **{"unroll": True, **options})
    losses = []
    for i, batch in enumerate(batches(num_steps, dtype)):
        controls.step.fill_(i)
        controls.learning_rate.fill_(0.05 / (i + 1))
        losses.append(step(batch)["loss"].clone())
    return torch.stack(losses), [*net.state_dict().values(), *made.state_dict().values(), *parts.momenta]


def assert_bitwise_equal(eager, compiled):
    assert torch.equal(eager[0], compiled[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(eager[1], compiled[1], strict=True))


def traced_once(num_graphs: int = 1, unroll: bool = True, backend: str = "aot_eager", **settings):
    """The losses and the state of compiled steps, of which all have these graphs."""
    counter = CompileCounterWithBackend(backend)
    found = trained("compile", backend=counter, unroll=unroll, **settings)
    # In float64 torch also compiles a frame without any operation.
    assert sum(len(graph.graph.nodes) > 0 for graph in counter.graphs) == num_graphs
    return found


@pytest.mark.parametrize(("method", "others"), TOGETHER.items(), ids=TOGETHER)
def test_every_method_is_traced_whole_once_for_all_rates_and_steps_and_keeps_every_bit(method, others):
    attack, precision, backend, optimizer = others
    settings = {"method": METHODS[method], "attack": attack, "precision": precision, "num_steps": 3}
    settings["optimizer"] = optimizer
    assert_bitwise_equal(trained("eager", **settings), traced_once(backend=backend, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_switch_of_a_method_is_traced_whole_and_keeps_every_bit(method):
    settings = {"method": METHODS[method], "num_steps": 20 if method in ("at", "arat") else 3}
    assert_bitwise_equal(trained("eager", **settings), traced_once(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_is_traced_whole_and_keeps_every_bit(attack):
    settings = {"attack": ATTACKS[attack], "num_steps": 3}
    assert_bitwise_equal(trained("eager", **settings), traced_once(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp64", "bf16", "fp16"])
def test_every_format_is_traced_whole_and_keeps_every_bit(precision):
    settings = {"precision": precision, "num_steps": 3}
    assert_bitwise_equal(trained("eager", **settings), traced_once(**settings))


@pytest.mark.parametrize(
    ("method", "num_graphs"),
    [
        ("arat", 1),
        ("shared", 3),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("at", "shared", "trades", "mart", "lbgat")),
        *(pytest.param(name, 3, marks=pytest.mark.slow) for name in ("arat", "arrest")),
    ],
)
def test_the_fused_kernels_are_traced_whole_and_keep_every_bit(method, num_graphs):
    # The attack by running statistics is in no other test of the fast run.
    attack = ATTACKS["running statistics" if method == "shared" else "one step"]
    settings = {"method": METHODS[method], "attack": attack, "kernels": TRITON, "num_steps": 3}
    compiled = traced_once(num_graphs, unroll=num_graphs == 1, **settings)
    assert_bitwise_equal(trained("eager", **settings), compiled)


@pytest.mark.parametrize(
    "method", ["at", "arat", "shared", "mixed", *(pytest.param(m, marks=pytest.mark.slow) for m in ("lbgat", "arrest"))]
)
@pytest.mark.parametrize("attack", [ATTACK, ATTACKS["running statistics"], ATTACKS["frozen statistics"]])
def test_the_fused_kernels_train_like_plain_pytorch(method, attack):
    settings = {"method": METHODS[method], "attack": attack, "precision": "fp64", "num_steps": 4}
    plain, fused = (trained("eager", kernels=kernels, **settings) for kernels in (PYTORCH, TRITON))
    # float64 (rounding 1e-16): 4 steps, each some hundred operations deep, magnify it; an attacked pixel whose
    # gradient is all but 0 may still take the other sign.
    torch.testing.assert_close(plain[0], fused[0], rtol=1e-6, atol=0)
    for mine, theirs in zip(plain[1], fused[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-arat", "digits-lbgat"])
def test_twenty_steps_on_the_digits_keep_every_bit(name):
    config = recipe(name)
    losses = {}
    for mode in ("eager", "compile"):
        training = build_training(config, open_dataset("digits"), World(torch.device("cpu")))
        step = build_step(training.parts, training.controls, mode, unroll=True, backend="aot_eager")
        training.controls.learning_rate.fill_(0.05)
        losses[mode] = []
        for batch, i in zip(training.loader.batches(1), range(20), strict=False):
            training.controls.step.fill_(i)
            losses[mode].append(float(step(batch)["loss"]))
    assert losses["eager"] == losses["compile"]


@pytest.mark.slow
@pytest.mark.parametrize(("kernels", "unroll"), [(PYTORCH, True), (TRITON, False)])
def test_inductor_gives_the_losses_of_the_eager_step_in_float64(kernels, unroll):
    settings = {"method": replace(METHODS["arat"], gamma=1.0), "precision": "fp64"}
    eager, compiled = trained("eager", **settings), trained("compile", unroll=unroll, kernels=kernels, **settings)
    torch.testing.assert_close(eager[0], compiled[0], rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [True, False], ids=["one graph", "three graphs"])
def test_inductor_gives_the_losses_of_the_eager_step_in_float32(unroll):
    settings = {"method": replace(METHODS["arat"], gamma=1.0), "num_steps": 3}
    eager, compiled = trained("eager", **settings), trained("compile", unroll=unroll, **settings)
    # Rounding of 6e-8 through a net and three steps, of which a sign that turns in the attack makes more.
    torch.testing.assert_close(eager[0], compiled[0], rtol=1e-3, atol=0)


def test_a_graph_with_autocast_is_kept_for_the_next_run():
    def doubled(x):
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x

    hits = counters["aot_autograd"]
    for _ in range(2):
        torch._dynamo.reset()
        kept = num_kept()
        before = hits["autograd_cache_hit"], hits["autograd_cache_bypass"]
        torch.compile(doubled, backend=_compiler("inductor", "cpu", overlaps=False), fullgraph=True)(torch.ones(2, 2))
    assert (hits["autograd_cache_hit"], hits["autograd_cache_bypass"]) == (before[0] + 1, before[1])
    assert num_kept() > kept


def test_a_teachers_convolutions_count_in_the_size_of_the_step():
    net = build_model("tiny", 3, batch_norm="shared")
    method = build_method(LBGATConfig(teacher="tiny"), net, (3, 8, 8))
    assert unrolled_size(parts_of(net, method, ATTACK, "fp32")) == 10 * 3 + 10


def test_small_steps_are_one_graph_and_large_ones_three():
    net, large = build_model("tiny", 3), build_model("resnet18", 10)
    method = build_method(METHODS["arat"], net, (3, 8, 8))
    assert unrolled_size(parts_of(net, method, ATTACK, "fp32")) == 10 * 3 <= MOST_UNROLLED
    method = build_method(METHODS["arat"], large, (3, 32, 32))
    assert unrolled_size(parts_of(large, method, AttackConfig(), "fp32")) == 20 * 11 > MOST_UNROLLED


def test_a_compiler_that_fails_is_named_with_the_way_round_it():
    def broken(graph, inputs):
        raise RuntimeError("no such instruction")

    with pytest.raises(WorkError, match=r"no such instruction.*--compile eager") as failure:
        trained("compile", method=METHODS["standard"], attack=ATTACKS["none"], backend=broken, num_steps=1)
    assert "\n" not in str(failure.value)


def test_a_closed_step_has_no_graph():
    resets: list[str] = []
    nothing: Any = None
    captured = CapturedStep(nothing, nothing)
    captured.graph = SimpleNamespace(reset=lambda: resets.append("reset"))  # type: ignore[assignment]
    steps = StepBySize(lambda: captured)
    steps.step = captured
    steps.close()
    steps.close()
    assert resets == ["reset"] and captured.graph is None and steps.step is None
