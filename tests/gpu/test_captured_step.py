"""The step on a GPU: captured it is the eager one whatever changes, and nothing in it waits for the device."""

from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON, Kernels

from fastarat.common.distributed import World
from fastarat.config.recipes import recipe
from fastarat.config.training import OptimizerConfig
from fastarat.data.open import open_dataset
from fastarat.training.build import build_training
from fastarat.training.compiling.captured import CapturedStep, state_tensors
from fastarat.training.step.precision import Dtype
from fastarat.training.step.train_step import train_step
from tests.helpers.captured import batch, built, losses_and_state, set_controls

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")


@pytest.mark.parametrize("unroll", [True, False], ids=["one graph", "three graphs"])
def test_the_captured_step_tracks_the_eager_one_over_200_replays(unroll):
    eager, _ = losses_and_state(200, "eager", PYTORCH, "fp64", GPU)
    captured, _ = losses_and_state(200, "graph", PYTORCH, "fp64", GPU, unroll)
    # float64: rounding of 1e-16 grows along 200 steps, and where it turns the sign of a gradient that is all but
    # 0 a pixel jumps. A rate, balance, eps, step size or seed that stayed behind moves the losses by percents.
    torch.testing.assert_close(captured[:20], eager[:20], rtol=1e-6, atol=0)
    assert (captured - eager).square().mean().sqrt() < 1e-3 * eager.square().mean().sqrt()


CONTROLS = ["step", "learning_rate", "eps", "step_size", "balance"]


@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
def test_every_control_reaches_the_captured_step(kernels):
    steps = {mode: built(mode, kernels, "fp32", GPU) for mode in ("eager", "graph")}
    results = {}
    for mode, (step, parts, controls) in steps.items():
        start = [tensor.clone() for tensor in state_tensors(parts)]
        for changed in (None, *CONTROLS):
            with torch.no_grad():
                for tensor, value in zip(state_tensors(parts), start, strict=True):
                    tensor.copy_(value)
            set_controls(0, parts, controls)
            if changed == "balance":
                parts.method.begin_epoch(torch.tensor(0.9))
            elif changed:
                value = getattr(controls, changed)
                value.fill_(7) if changed == "step" else value.mul_(2)
            loss = step(batch(0, parts))["loss"].clone()
            weights = torch.cat([parameter.detach().flatten() for parameter in parts.parameters])
            results[mode, changed] = loss, weights
    for changed in (None, *CONTROLS):
        (loss, weights), (eager_loss, eager_weights) = results["graph", changed], results["eager", changed]
        # One float32 step with TF32 convolutions (10 bits): losses to 1e-2, weights far closer than the change.
        torch.testing.assert_close(loss, eager_loss, rtol=1e-2, atol=0)
        moved = (results["eager", changed][1] - results["eager", None][1]).norm()
        assert (weights - eager_weights).norm() <= max(0.5 * float(moved), 1e-2 * float(eager_weights.norm()))
        if changed:
            assert not torch.equal(weights, results["graph", None][1]), f"{changed} changed nothing"


@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_captured_step_trains_in_half_precision(kernels, precision):
    losses, _ = losses_and_state(60, "graph", kernels, precision, GPU)
    assert losses.isfinite().all() and losses[-16:].mean() < losses[:16].mean()


def test_a_capture_leaves_everything_as_it_was_before_its_first_replay():
    _, eager = losses_and_state(1, "eager", PYTORCH, "fp64", GPU)
    _, captured = losses_and_state(1, "graph", PYTORCH, "fp64", GPU)
    for ours, theirs in zip(captured, eager, strict=True):
        # One float64 step; a warm-up that was not undone would show in the first digit.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def few_steps(
    name: str, dtype: Dtype, kernels: Kernels, captured: bool, device: torch.device = GPU, optimizer: str = "sgd"
):
    """Losses and momenta of some steps of a recipe on the digits, without weight decay."""
    config = recipe(f"digits-{name}")
    attack = replace(config.attack, steps=min(config.attack.steps, 2))
    config = replace(config, batch=32, attack=attack, optimizer=OptimizerConfig(name=optimizer, weight_decay=0))
    training = build_training(config, open_dataset("digits"), World(device), dtype=dtype, kernels=kernels)
    parts, controls = training.parts, training.controls
    step = partial(train_step, parts, controls=controls)
    step = CapturedStep(parts, step) if captured else step
    losses = [training.advance(step, given)["loss"].clone() for given in islice(training.loader.batches(1), 5)]
    return torch.stack(losses), parts.momenta


BY_SGD = ("trades", "mart", "lbgat", "arrest", "fgsm-rs", "n-fgsm", "standard")


@pytest.mark.parametrize(("name", "optimizer"), [*((name, "sgd") for name in BY_SGD), ("at", "muon")])
def test_every_method_is_captured_and_trains_all_its_weights(name, optimizer):
    """Uncompiled, which takes no time: what is captured are the same operations."""
    (eager, _), (captured, _) = (
        few_steps(name, "fp64", PYTORCH, graph, optimizer=optimizer) for graph in (False, True)
    )
    torch.testing.assert_close(captured, eager, rtol=1e-6, atol=0)  # float64, five steps
    losses, momenta = few_steps(name, "bf16", TRITON, captured=True, optimizer=optimizer)
    # A forward without gradients must not leave weights in autocast's cache that have none.
    assert losses.isfinite().all() and all(momentum.any() for momentum in momenta)


def test_a_replayed_step_never_waits_for_the_device():
    step, parts, controls = built("graph", TRITON, "bf16", GPU)
    batches = [batch(i, parts) for i in range(4)]
    balance = torch.tensor(0.3, device=GPU)
    step(batches[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i, given in enumerate(batches):
            controls.step.fill_(i)
            controls.learning_rate.fill_(0.1)
            parts.method.begin_epoch(balance)
            step(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
