"""A step on the simulated GPU: nothing in it waits, copies from the host or allocates; nothing is compiled again."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from fastarat.common.distributed import World
from fastarat.config import Config
from fastarat.config.recipes import recipe
from fastarat.data.images.dataset import Dataset, Images
from fastarat.data.loading.choose import Opened
from fastarat.training.build import start_training
from fastarat.training.choices import Choices
from fastarat.training.step.compiled import StepBySize
from tests.helpers.simulated_gpu import Counts, counted_only, counting
from tests.helpers.simulated_gpu import pytestmark as needs_simulated_gpu

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


def digits() -> Dataset:
    images = Images(np.zeros((160, 8, 8, 1), np.uint8), np.arange(160) % 10)
    return Dataset("digits of zeros", images, images, tuple("0123456789"), 16, "")


def step_counts(config: Config, choices: Choices, after: int = 2) -> Counts:
    """What one step asks of the device, `after` the first ones."""
    device = torch.device("cuda", 0)
    training, step = start_training(config, Opened(digits(), "resident", ""), choices, World(device))
    batches = training.loader.batches(1)
    for batch in islice(batches, after):
        training.advance(step, batch)
    given = next(batches)
    frames = sum(counters["frames"].values())
    with counting() as counts:
        training.advance(step, given)
    assert sum(counters["frames"].values()) == frames, "it was compiled again"
    if isinstance(step, StepBySize):
        step.close()
    return counts


@pytest.mark.parametrize(("method", "dtype", "kernels"), EAGER)
def test_an_eager_step_leaves_the_host_alone(method, dtype, kernels):
    counts = step_counts(small(method), Choices("cuda", dtype, kernels, "eager"))
    assert counts.disturbances == {} and not counts.stray and not counts.nodes
    assert counts.launches > 50 and (counts.families["fastarat"] > 0) == (kernels == "triton")


@pytest.mark.parametrize(("method", "dtype", "kernels"), COMPILED)
def test_a_captured_step_is_one_launch(method, dtype, kernels):
    counts = step_counts(small(method), Choices("cuda", dtype, kernels, "graph"))
    assert counts.disturbances == {} and not counts.stray
    assert counts.stats["graph_launches"] == 1 and counts.nodes > 50
    # The learning rate, the step's number, sums of metrics, the first step that was not finite.
    assert counts.launches <= 20 and counts.copies <= 6


def test_a_compiled_step_launches_what_the_captured_one_replays():
    compiled = step_counts(small("at"), Choices("cuda", "bf16", "triton", "compile"))
    captured = step_counts(small("at"), Choices("cuda", "bf16", "triton", "graph"))
    assert compiled.disturbances == captured.disturbances == {}
    assert compiled.launches + compiled.copies - captured.nodes <= captured.launches + captured.copies
