"""Images may change their size between steps: every mode trains as the eager step does."""

from dataclasses import replace
from itertools import groupby

import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON
from torch._dynamo.testing import CompileCounterWithBackend

from fastarat.config.method import ATConfig
from fastarat.methods.registry import build_method
from fastarat.models.registry import build_model
from fastarat.training.compiling.compiled import build_step
from fastarat.training.step.train_step import Controls
from tests.helpers.captured import ATTACK, built, pretended_capture, taken
from tests.helpers.step_parts import nets_of_one_block, parts_of

TURNS = (16, 12, 16, 16, 12)
NUM_MADE = len(list(groupby(TURNS)))
"""steps that are compiled and captured: one is kept, that of the last size"""
pytestmark = pytest.mark.no_cover  # it would take as long again as the tracing


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


def assert_bitwise_equal(ours, theirs):
    assert torch.equal(ours[0], theirs[0])
    assert all(torch.equal(mine, other) for mine, other in zip(ours[1], theirs[1], strict=True))


def small(mode, unroll=True, **options):
    """A step that compiles in little time: AT of the smallest net with one attack step."""
    torch.manual_seed(0)
    with nets_of_one_block():
        net = build_model("digits", 10, batch_norm="shared").to(memory_format=torch.channels_last).train()
    parts = parts_of(net, build_method(ATConfig(), net, (3, 16, 16)), replace(ATTACK, steps=1), "fp32")
    controls = Controls.of(parts, learning_rate=0.1)
    return build_step(parts, controls, mode, unroll=unroll, **options), parts, controls


@pytest.mark.parametrize(
    ("build", "unroll"), [(small, True), (small, False), pytest.param(built, True, marks=pytest.mark.slow)]
)
def test_sizes_in_turn_keep_every_bit_of_the_eager_run_and_compile_for_each_turn(build, unroll):
    counter = CompileCounterWithBackend("eager")
    with torch._dynamo.config.patch(recompile_limit=1):  # another size is no recompile, of which there may be eight
        compiled = taken(TURNS, *build("compile", unroll=unroll, backend=counter))
    assert_bitwise_equal(compiled, taken(TURNS, *build("eager")))
    assert counter.frame_count == NUM_MADE * (1 if unroll else 3)


def test_a_captured_step_gives_up_its_graph_before_the_next_size_is_captured(monkeypatch):
    """A graph's memory is its own: with those of earlier sizes a run would need as much as all of them together."""
    eager = taken(TURNS, *small("eager"))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # as above it keeps every bit
    step, parts, controls = small("graph")
    with pretended_capture(monkeypatch, step) as counts:
        assert_bitwise_equal(taken(TURNS, step, parts, controls), eager)
    assert counts == [1] * NUM_MADE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
def test_on_a_gpu_sizes_in_turn_are_captured_and_train_as_the_eager_run(kernels):
    precision = "fp64" if kernels is PYTORCH else "fp32"
    runs = [taken(TURNS, *built(mode, kernels, precision, torch.device("cuda"))) for mode in ("graph", "eager")]
    # float64: rounding alone. float32 with TF32 convolutions (10 bits) over five steps: the size of the losses.
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-6 if precision == "fp64" else 5e-2, atol=0)
