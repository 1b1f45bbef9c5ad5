"""What this machine's compilers make of a step is held against the step as it is written."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastarat.common.distributed import World
from fastarat.config.recipes import recipe
from fastarat.data.loading.choose import Opened
from fastarat.data.open import open_dataset
from fastarat.training.build import start_training, step_of
from fastarat.training.choices import Choices
from fastarat.training.compiling import first_step
from fastarat.training.compiling.captured import remembered, state_tensors
from fastarat.training.compiling.compiled import NotCompiled, _compiler
from fastarat.training.compiling.first_step import gain_in_turns, held_against


def training_of(dtype, batch, name="digits-arat", steps=1):
    config = replace(recipe(name), batch=batch)
    config = replace(config, attack=replace(config.attack, steps=steps))
    opened = Opened(open_dataset("digits"), "resident", "")
    training, step = start_training(config, opened, Choices(dtype=dtype), World(torch.device("cpu")))
    training.controls.learning_rate.fill_(0.1)
    return training, step, next(training.loader.batches(1))


@pytest.mark.slow
def test_inductor_s_step_of_the_digits_in_bf16_is_the_eager_one():
    # Of one channel, so that tiles are transposed; 64 rows, so that they are whole.
    training, eager, batch = training_of("bf16", 64)
    compiled = step_of(training, Choices(dtype="bf16", compile="compile", unroll=False))
    held_against(eager, compiled, training, batch)


def test_what_is_not_finite_as_it_is_written_is_no_fault_of_the_compiler():
    training, eager, batch = training_of("fp32", 8)
    infinite = batch._replace(x=batch.x * torch.inf)
    metrics = held_against(eager, eager, training, infinite)
    assert metrics["loss"].isnan()


@pytest.mark.parametrize("wrong", [float("nan"), 100.0])
def test_statistics_that_move_another_way_are_told_apart_from_rounding(wrong):
    training, eager, batch = training_of("bf16", 8)

    def miscompiled(batch):
        metrics = eager(batch)
        training.parts.model.bn1.running_var.fill_(wrong)
        return metrics

    held_against(eager, eager, training, batch)
    with pytest.raises(NotCompiled, match=r"what the running statistics took up is off by .*; --compile eager"):
        held_against(eager, miscompiled, training, batch)


def test_a_gradient_is_compared_where_the_learning_rate_is_0():
    training, eager, batch = training_of("bf16", 8)
    training.controls.learning_rate.fill_(0)

    def miscompiled(batch):
        metrics = eager(batch)
        training.parts.momenta[0].fill_(float("nan"))
        return metrics

    held_against(eager, eager, training, batch)
    with pytest.raises(NotCompiled, match="how far the momenta moved is off by"):
        held_against(eager, miscompiled, training, batch)


class Dropping(nn.Linear):
    """A last layer with dropout before it."""

    def forward(self, x):
        return super().forward(functional.dropout(x, 0.2, self.training))


def test_steps_that_draw_random_numbers_draw_the_same_ones_and_leave_them_to_the_next():
    training, eager, batch = training_of("fp32", 8)
    training.parts.model.linear.__class__ = Dropping
    put_back = remembered(training.parts)
    loss, state = float(eager(batch)["loss"]), torch.get_rng_state()
    assert float(eager(batch)["loss"]) != loss
    put_back()
    assert float(held_against(eager, eager, training, batch)["loss"]) == loss
    gain_in_turns(eager, eager, training.parts, batch)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.no_cover  # dynamo traces
def test_inductor_s_dropout_draws_what_the_eager_one_draws():
    x = torch.ones(64)
    random = torch.get_rng_state()
    eager = functional.dropout(x)
    torch.set_rng_state(random)
    compiled = torch.compile(functional.dropout, backend=_compiler("inductor", "cpu", overlaps=False))
    assert torch.equal(compiled(x), eager)


def test_rounding_that_the_configured_attack_makes_large_is_no_fault_of_the_compiler():
    training, eager, batch = training_of("bf16", 64)
    taken = []

    def compiled(batch):
        metrics = eager(batch)
        is_configured = float(training.controls.step_size) == pytest.approx(training.parts.attack.step_size)
        taken.append(is_configured)
        return {**metrics, "loss": metrics["loss"] * 1.06} if is_configured else metrics

    metrics = held_against(eager, compiled, training, batch)
    assert taken == [False, False, True]
    held_against(eager, eager, training, batch)
    assert float(metrics["loss"]) > 0 and training.controls.eps == pytest.approx(training.parts.attack.eps)


def with_a_wrong_scale(training, eager):
    """The step of a net whose first batch-norm multiplies by a twentieth more."""
    weight = training.parts.model.bn1.weight

    def miscompiled(batch):
        before = weight.detach().clone()
        weight.data.mul_(1.05)
        metrics = eager(batch)
        weight.data.sub_(0.05 * before)
        return metrics

    return miscompiled


def with_half_the_attack(training, eager):
    """The step whose attack goes half as far."""

    def miscompiled(batch):
        size = training.controls.step_size
        size.mul_(0.5)
        metrics = eager(batch)
        size.mul_(2)
        return metrics

    return miscompiled


@pytest.mark.parametrize(
    ("wrong", "words"), [(with_a_wrong_scale, "the running statistics took up"), (with_half_the_attack, "the loss")]
)
def test_a_subtle_mistake_is_told_apart_from_rounding(wrong, words):
    training, eager, batch = training_of("bf16", 64, "digits-at-fast", steps=2)
    for _ in range(5):  # what a new net says of images hardly depends on them
        eager(batch)
    held_against(eager, eager, training, batch)
    with pytest.raises(NotCompiled, match=f"{words} is off by"):
        held_against(eager, wrong(training, eager), training, batch)


def test_timed_turns_leave_every_bit_as_it_was_and_tell_the_faster(monkeypatch):
    training, eager, batch = training_of("fp32", 8)
    clock = [0.0]
    monkeypatch.setattr(first_step, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def taking(seconds):
        def step(batch):
            clock[0] += seconds
            return eager(batch)

        return step

    before = [tensor.clone() for tensor in state_tensors(training.parts)]
    assert gain_in_turns(taking(3.0), taking(2.0), training.parts, batch) == pytest.approx(1.5)
    assert all(map(torch.equal, state_tensors(training.parts), before))
