"""The learning rate of a step."""

import math

from fastarat.config.training import ScheduleConfig


def learning_rate(settings: ScheduleConfig, peak: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of step `step` (from 0) of a training of `epochs` epochs.

    `steps` changes between epochs (epochs count from 1), the others with every step.
    """
    epoch = step // steps_per_epoch + 1
    progress = step / (steps_per_epoch * epochs)
    if epoch <= settings.warmup_epochs:
        return peak * settings.warmup_factor
    if settings.name == "steps":
        return peak * settings.factor ** sum(epoch >= milestone for milestone in settings.milestones)
    if settings.name == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    if settings.name == "cyclic":
        return peak * min(progress / settings.rise, (1 - progress) / (1 - settings.rise))
    return peak
