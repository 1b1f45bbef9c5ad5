"""A training fed by one loader: which share of its steps passes in waiting for data."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import count, pairwise
from typing import Any, Literal

import torch

from bench.loaders.cases import LoaderCase
from bench.loaders.cpu_time import cpu_seconds
from fastarat.common.choice_log import ChoiceLog
from fastarat.common.distributed import join_world
from fastarat.config import Config
from fastarat.config.data import LoadingConfig
from fastarat.config.recipes import recipe
from fastarat.data.loading.choose import open_for_training
from fastarat.data.loading.loader import Batch, Loader
from fastarat.training.build import start_training
from fastarat.training.choices import choose
from fastarat.training.state import Training
from fastarat.training.step.train_step import Step
from fastarat.training.tuning.chunks import WARM_UP, mark, milliseconds

LEAST_STEPS = 4


def training(case: LoaderCase, seconds: float) -> dict[str, Any]:
    """The share of the time, over about `seconds` of steps, that the step's device waited for its next batch.

    On a CPU that is the time spent in asking for a batch, which crops and flips it there too. On a GPU it is the time
    between a step's end and the next one's start, in which it also makes the batch of its pixels: a host that is ahead
    of it costs nothing.
    """
    config, on_gpu = config_of(case), case.device == "cuda"
    # All as `fastarat train` builds it.
    choices = choose(config, ChoiceLog(quiet=True))
    world = join_world(choices.device)
    state, step = start_training(config, open_for_training(config, world.device), choices, world)
    state.parts.method.begin_epoch(torch.tensor(0.5))
    feed = _endless(state.loader)
    try:
        for _ in range(WARM_UP):  # compiles what is compiled
            state.advance(step, next(feed))
        rate = _steps(state, step, feed, steps=1, on_gpu=on_gpu)
        steps = max(round(1e3 * seconds / rate["ms"]), LEAST_STEPS)
        before = cpu_seconds()
        found = _steps(state, step, feed, steps=steps, on_gpu=on_gpu)
        images = steps * config.batch
        return {
            "model": config.model.name,
            "batch": config.batch,
            "attack_steps": config.attack.steps,
            "steps": steps,
            "images": images,
            "images_per_s": 1e3 * images / found["ms"],
            "cpu_s_per_1000": 1000 * (cpu_seconds() - before) / images,
            "waiting_share": found["waiting_ms"] / found["ms"],
            "ms_a_step": found["ms"] / steps,
        }
    finally:
        feed.close()
        state.loader.close()


def config_of(case: LoaderCase) -> Config:
    """The configuration of the training that is fed, checked."""
    assert case.recipe is not None
    config = recipe(case.recipe)
    crop: Literal["padded", "resized"] = "resized" if case.fed_size else "padded"
    return replace(
        config,
        data=case.path,
        loader=case.loader,
        size=case.fed_size,
        batch=case.fed_batch or config.batch,
        device=case.device,
        num_validation_images=0,
        num_train_images=None,
        attack=replace(config.attack, steps=case.attack_steps or config.attack.steps),
        augment=replace(config.augment, crop=crop, start_size=None),
        loading=LoadingConfig(workers=case.workers, decode=case.decode),
    ).checked()


def _endless(loader: Loader) -> Generator[Batch, None, None]:
    for epoch in count(1):
        yield from loader.batches(epoch)


def _steps(state: Training, step: Step, feed: Iterator[Batch], *, steps: int, on_gpu: bool) -> dict[str, float]:
    """Milliseconds of `steps` steps, and of the gaps before each."""
    marks = [mark(on_gpu)]
    for _ in range(steps):
        batch = next(feed)
        marks.append(mark(on_gpu))
        state.advance(step, batch)
        marks.append(mark(on_gpu))
    if on_gpu:
        torch.cuda.synchronize()
    gaps = [milliseconds(first, last) for first, last in list(pairwise(marks))[::2]]
    return {"ms": milliseconds(marks[0], marks[-1]), "waiting_ms": sum(gaps)}
