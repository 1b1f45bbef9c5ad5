"""A training fed by one loader: which share of its steps passes in waiting for data."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch

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
from fastarat.training.step.compiled import Step
from fastarat.training.tuning.chunks import WARM_UP, mark, milliseconds

LEAST_STEPS = 4


@dataclass(frozen=True)
class Fed:
    """What one process measures: fastarat's step of a recipe, as it is chosen here, and what feeds it."""

    recipe: str
    loader: str
    path: str
    size: int | None
    """pixels of a side that random resized crops are brought to; None: padded crops of images as they are stored"""
    batch: int | None
    """None: the recipe's"""
    attack_steps: int | None
    workers: int
    decode: Literal["cpu", "gpu"]
    device: Literal["cpu", "cuda"]

    def config(self) -> Config:
        """The training's configuration, checked."""
        config = recipe(self.recipe)
        crop: Literal["padded", "resized"] = "resized" if self.size else "padded"
        return replace(
            config,
            data=self.path,
            loader=self.loader,
            size=self.size,
            batch=self.batch or config.batch,
            device=self.device,
            num_validation_images=0,
            num_train_images=None,
            attack=replace(config.attack, steps=self.attack_steps or config.attack.steps),
            augment=replace(config.augment, crop=crop, start_size=None),
            loading=LoadingConfig(workers=self.workers, decode=self.decode),
        ).checked()


def training(fed: Fed, seconds: float) -> dict[str, Any]:
    """The share of the time, over about `seconds` of steps, that the step's device waited for its next batch.

    On a CPU that is the time spent in asking for a batch, which crops and flips it there too. On a GPU it is the time
    between a step's end and the next one's start, in which it also makes the batch of its pixels: a host that is ahead
    of it costs nothing.
    """
    config, on_gpu = fed.config(), fed.device == "cuda"
    state, step = _built(config)
    feed = _endless(state.loader)
    try:
        for _ in range(WARM_UP):  # compiles what is compiled
            state.advance(step, next(feed))
        rate = _steps(state, step, feed, count=1, on_gpu=on_gpu)
        count = max(round(1e3 * seconds / rate["ms"]), LEAST_STEPS)
        before = cpu_seconds()
        found = _steps(state, step, feed, count=count, on_gpu=on_gpu)
        images = count * config.batch
        return {
            "model": config.model.name,
            "batch": config.batch,
            "attack_steps": config.attack.steps,
            "steps": count,
            "images": images,
            "images_per_s": 1e3 * images / found["ms"],
            "cpu_s_per_1000": 1000 * (cpu_seconds() - before) / images,
            "waiting_share": found["waiting_ms"] / found["ms"],
            "ms_a_step": found["ms"] / count,
        }
    finally:
        feed.close()
        state.loader.close()


def _built(config: Config) -> tuple[Training, Step]:
    """A training and its step, as `fastarat train` builds them."""
    choices = choose(config, ChoiceLog(quiet=True))
    world = join_world(choices.device)
    state, step = start_training(config, open_for_training(config, world.device), choices, world)
    state.parts.method.begin_epoch(torch.tensor(0.5))
    return state, step


def _endless(loader: Loader) -> Generator[Batch, None, None]:
    epoch = 0
    while True:
        epoch += 1
        yield from loader.batches(epoch)


def _steps(state: Training, step: Step, feed: Iterator[Batch], *, count: int, on_gpu: bool) -> dict[str, float]:
    """Milliseconds of `count` steps, and of the gaps before each."""
    marks = [mark(on_gpu)]
    for _ in range(count):
        batch = next(feed)
        marks.append(mark(on_gpu))
        state.advance(step, batch)
        marks.append(mark(on_gpu))
    if on_gpu:
        torch.cuda.synchronize()
    gaps = [milliseconds(first, last) for first, last in list(pairwise(marks))[::2]]
    return {"ms": milliseconds(marks[0], marks[-1]), "waiting_ms": sum(gaps)}
