"""Settings of small ladders, and what makes a training wrong."""

from dataclasses import replace
from functools import cache

import torch

from bench.common.inputs import random_images
from bench.ladder.variants import with_attack
from fastarat.config.recipes import recipe
from fastarat.training.choices import Choices
from fastarat.training.tuning.gate import LEARNING_RATE, Right, batches_of, definition
from fastarat.training.tuning.subject import FastaratSubject, State, StepSetting

CPU = torch.device("cpu")


def setting_of(method: str = "arat", batch: int = 16, steps: int = 3) -> StepSetting:
    config = recipe(f"digits-{method}")
    optimizer = replace(config.optimizer, learning_rate=LEARNING_RATE)
    attack = replace(config.attack, steps=min(steps, config.attack.steps))
    config = replace(config, batch=batch, attack=attack, optimizer=optimizer)
    return StepSetting(config, random_images("digits", 8 * batch), CPU)


@cache
def right_of(method: str) -> Right:
    """The definition's batches and results of a method's setting."""
    setting = setting_of(method)
    batches = batches_of(setting)
    return batches, definition(setting, batches)


def own(setting: StepSetting, dtype="fp32") -> FastaratSubject:
    return FastaratSubject(setting, Choices(dtype=dtype))


def trained(setting: StepSetting, form: Choices) -> tuple[list[float], State]:
    """Losses of three steps, and the weights and statistics that they leave."""
    subject = FastaratSubject(setting, form)
    feed = subject.batches()
    losses = [float(subject.step(next(feed))["loss"]) for _ in range(3)]
    return losses, {**subject.parameters(), **subject.statistics()}


def with_method(setting: StepSetting, **changes) -> StepSetting:
    method = replace(setting.config.method, **changes)
    return replace(setting, config=replace(setting.config, method=method))


def with_rate(setting: StepSetting, rate: float) -> StepSetting:
    optimizer = replace(setting.config.optimizer, learning_rate=rate)
    return replace(setting, config=replace(setting.config, optimizer=optimizer))


def with_radius(setting: StepSetting, eps_255: float) -> StepSetting:
    """By steps of the size that they had."""
    return with_attack(setting, eps_255=eps_255, step_255=setting.config.attack.known_step_255)


WRONG = {
    "one attack step fewer": lambda s: with_attack(s, steps=2),
    "no update of the adversarial statistics": lambda s: with_attack(s, batch_norm="frozen"),
    "the attack by running statistics": lambda s: with_attack(s, batch_norm="eval"),
    "a lost stop-gradient": lambda s: with_method(s, stop_gradient="none"),
    "a halved learning rate": lambda s: with_rate(s, LEARNING_RATE / 2),
    "a quarter of the radius": lambda s: with_radius(s, s.config.attack.known_eps_255 / 4),
    "no momentum": lambda s: replace(s, config=replace(s.config, optimizer=replace(s.config.optimizer, momentum=0.0))),
}
