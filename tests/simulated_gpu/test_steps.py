"""A step on the simulated GPU: nothing in it waits, copies from the host or allocates; nothing is compiled again."""

from dataclasses import replace
from typing import Literal

import pytest

from fastarat.config import Config
from fastarat.config.recipes import recipe
from fastarat.config.training import CompileMode
from fastarat.training.choices import Choices
from fastarat.training.step.precision import Dtype
from tests.helpers.simulated_gpu import Counts, black_images, counted_only, step_counts
from tests.helpers.simulated_gpu import pytestmark as needs_simulated_gpu
from tests.simulated_gpu.step_table import counted, rows

pytestmark = [*needs_simulated_gpu, counted_only]

METHODS = ("at", "arat", "trades", "mart", "lbgat", "arrest", "fgsm-rs", "n-fgsm", "standard")
EAGER = [
    *[(method, "bf16", "triton") for method in METHODS],
    *[("arat", "fp32", "triton"), ("arat", "fp16", "triton"), ("arat", "bf16", "pytorch"), ("arat", "fp64", "pytorch")],
]
COMPILED = [
    *[("arat", "bf16", "triton"), ("arat", "fp16", "triton"), ("arat", "fp32", "pytorch")],
    *[("trades", "bf16", "triton"), ("lbgat", "bf16", "triton")],
]


def small(method: str) -> Config:
    """A recipe on the digits with two attack steps."""
    config = recipe(f"digits-{method}")
    return replace(config, batch=32, attack=replace(config.attack, steps=min(config.attack.steps, 2)))


def digits_counts(method: str, dtype: Dtype, kernels: Literal["pytorch", "triton"], compile: CompileMode) -> Counts:
    """What a step of a recipe on the digits asks of the device."""
    return step_counts(small(method), black_images(8, 1, 192), Choices("cuda", dtype, kernels, compile))


@pytest.mark.parametrize(("method", "dtype", "kernels"), EAGER)
def test_an_eager_step_leaves_the_host_alone(method, dtype, kernels):
    counts = digits_counts(method, dtype, kernels, "eager")
    assert counts.disturbances == {} and not counts.stray and not counts.nodes
    assert counts.launches > 50 and (counts.families["fastarat"] > 0) == (kernels == "triton")


@pytest.mark.parametrize(("method", "dtype", "kernels"), COMPILED)
def test_a_captured_step_is_one_launch(method, dtype, kernels):
    counts = digits_counts(method, dtype, kernels, "graph")
    assert counts.disturbances == {} and not counts.stray
    assert counts.stats["graph_launches"] == 1 and counts.nodes > 50
    # The learning rate, the step's number, sums of metrics, the first step that was not finite.
    assert counts.launches <= 20 and counts.copies <= 6


CHANGES = {"shape": {"without": ("fused_batch_norm@64x4x4",)}, "stem": {"stem_channels": 8}}


@pytest.mark.parametrize("what", CHANGES)
def test_a_step_without_a_shape_or_with_another_stem_is_captured_too(what):
    choices = replace(Choices("cuda", "bf16", "triton", "graph"), **CHANGES[what])
    counts = step_counts(small("arat"), black_images(8, 1, 192), choices)
    whole = digits_counts("arat", "bf16", "triton", "graph")
    assert counts.disturbances == {} and not counts.stray and counts.stats["graph_launches"] == 1
    assert (counts.families["fastarat"] < whole.families["fastarat"]) == (what == "shape")


def test_a_compiled_step_launches_what_the_captured_one_replays():
    compiled = digits_counts("at", "bf16", "triton", "compile")
    captured = digits_counts("at", "bf16", "triton", "graph")
    assert compiled.disturbances == captured.disturbances == {}
    assert compiled.launches + compiled.copies - captured.nodes <= captured.launches + captured.copies


TABLE = rows()


@pytest.mark.parametrize("cell", [cell for cell in TABLE if ":eager:" in cell and "wrn" not in cell])
def test_the_table_of_steps_is_what_they_launch(cell):
    row = counted(cell)
    # What libraries keep for themselves is there before the first of these steps, or comes with it.
    assert abs(row.pop("peak_mb") - TABLE[cell]["peak_mb"]) < 100
    assert row == {name: TABLE[cell][name] for name in row}


def test_no_step_of_the_table_disturbs_the_host():
    assert TABLE and {cell: row["disturbances"] for cell, row in TABLE.items() if row["disturbances"]} == {}
