"""Whether a run on a CPU compiles its step: if that saves more of the time left than it takes."""

import math
import time

import torch

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.distributed import decided
from fastarat.common.durations import duration
from fastarat.config.training import CompileMode
from fastarat.data.loading.loader import Batch
from fastarat.training.compiling.captured import remembered
from fastarat.training.compiling.compile_times import gain_of, keep_seconds, last_slowness, seconds_to_compile, step_key
from fastarat.training.compiling.compiled import num_convolutions
from fastarat.training.state import Training
from fastarat.training.step.train_step import Step

SAVED = {"fp32": 0.2, "bf16": 0.3}
"""the share of an eager step's time that the compiled one saves, of the nets of the recipes for CPUs: until it is known
of this step on this machine"""
MOST_CONVOLUTIONS = 12
"""of such a net"""
SAVED_OF_LARGE = {"fp32": 0.1, "bf16": 0.2}
"""the share of larger nets, of whose time products take more: steps of AT of a ResNet-18 of half the width were 1.16
and 1.39 times as fast"""
_SECONDS_A_COMPILER = 35.0
_SECONDS_A_CONVOLUTION = 2.5
"""what a first compilation takes, by the net's convolutions, on two idle cores that sort in the time below: 49 s were
measured for 6, and 30 to 35 s on cores twice as fast; for 20, in three graphs, 131 s where 97 are estimated"""
_SECONDS_OF_SORTING = 0.02
"""what a hundred thousand words take there"""
_MOST_STEPS = 4
_ENOUGH_SECONDS = 2.0


def faster_mode(training: Training, step: Step, done: int, log: ChoiceLog) -> CompileMode:
    """Eager or compile, for a run with `done` steps behind it, whose eager `step` is timed.

    What the timed steps move is put back, bit by bit; all processes take them, and the first one's clock counts.
    """
    parts, left = training.parts, training.config.epochs * training.loader.steps_per_epoch - done
    share, why = _share(training)
    share = decided(lambda: share, parts.world)
    if share <= 0:
        log.choose("compile", "eager", why)
        return "eager"
    cost = decided(lambda: _cost(training), parts.world)
    seconds, spent, batch = math.inf, 0.0, _made_up(training)
    put_back = remembered(parts)
    for number in range(_MOST_STEPS):
        started = time.monotonic()
        step(batch)
        mine = time.monotonic() - started
        took = decided(lambda mine=mine: mine, parts.world)
        seconds, spent = min(seconds, took), spent + took
        # A process' first step took 13 s where the next ones took one: it says no more than that eager is good enough.
        if not pays(seconds * left, share, cost) or (number and spent > _ENOUGH_SECONDS):
            break
    put_back()
    mode: CompileMode = "compile" if pays(seconds * left, share, cost) else "eager"
    log.choose("compile", mode, _why(seconds * left, share, cost))
    return mode


def pays(left: float, share: float, cost: float) -> bool:
    """Whether compiling for `cost` seconds, which saves this `share` of the `left` ones, ends sooner."""
    return share * left > cost


def _why(left: float, share: float, cost: float) -> str:
    saved = duration(share * left)
    return f"about {duration(left)} of steps are left: compiling takes {duration(cost)} and saves {saved}"


def _share(training: Training) -> tuple[float, str]:
    """The share of an eager step's time that the compiled one saves, and why there is none: as it was here, else by the
    number format and the net's size."""
    gains = [gain_of(key) for key in _keys(training)]
    known = [gain for gain in gains if gain is not None]
    if known:
        return 1 - 1 / min(known), "a compiled step was no faster here"
    dtype = training.parts.precision.dtype
    small = num_convolutions(training.parts.model) <= MOST_CONVOLUTIONS
    return (SAVED if small else SAVED_OF_LARGE).get(dtype, 0.0), f"no gain is known of compiling on a CPU in {dtype}"


def _keys(training: Training) -> list[str]:
    """Of the step for every size of images that comes, see `step_key`."""
    config, (height, width, _) = training.config, training.dataset.image_shape
    sides = {config.size_in(epoch) for epoch in range(training.epoch, config.epochs + 1)}
    return [step_key(training.parts, config, (side, side) if side else (height, width)) for side in sides]


def _cost(training: Training) -> float:
    """Seconds to compile the step for every size of images that comes: by the last time, else by the net's size."""
    known = [seconds_to_compile(key) for key in _keys(training)]
    estimated = estimate(training) if None in known else 0.0
    return sum(estimated if seconds is None else seconds for seconds in known)


def expected(training: Training, size: tuple[int, int]) -> tuple[float | None, str]:
    """Seconds to compile the step for images of this size (height, width), and by what they are known; None if not."""
    seconds = seconds_to_compile(step_key(training.parts, training.config, size))
    if seconds is not None:
        return seconds, "by the last time on this machine"
    if not _is_estimated(training):
        return None, ""
    return estimate(training), "by the net's size and how slow the machine is"


def estimate(training: Training) -> float:
    """Seconds of a first compilation on this machine, as slow as it is now, or was at its last one in this hour."""
    return idle_seconds(training) * max(last_slowness(), _slowness_now())


def keep_compile_seconds(training: Training, key: str, seconds: float, *, was_kept: bool) -> None:
    """Remember how long the step `key` took to compile, or to load where its code `was_kept`; and how slow the machine
    was if that can be said: of a net like the measured ones, by a process that waited for no other."""
    alone = training.parts.world.size == 1
    small = num_convolutions(training.parts.model) <= MOST_CONVOLUTIONS
    idle = idle_seconds(training) if alone and small and _is_estimated(training) else None
    keep_seconds(key, seconds, idle, was_kept=was_kept)


def _is_estimated(training: Training) -> bool:
    """Whether the time of a first compilation is known by the net's size."""
    return training.parts.world.device.type == "cpu"


def idle_seconds(training: Training) -> float:
    """Seconds of a first compilation on two idle cores."""
    convolutions = num_convolutions(training.parts.model) + num_convolutions(training.parts.method)
    return _SECONDS_A_COMPILER + _SECONDS_A_CONVOLUTION * convolutions


def _slowness_now() -> float:
    """How many times as long as on an idle core a little work takes."""
    started = time.monotonic()
    sorted(map(str, range(100_000)))
    return (time.monotonic() - started) / _SECONDS_OF_SORTING


def _made_up(training: Training) -> Batch:
    """A batch of random images as the loader gives them; no loader is started for it, no random state moves."""
    parts, (height, width, channels) = training.parts, training.dataset.image_shape
    side, rows = training.config.size_in(training.epoch), training.config.batch // parts.world.size
    shape = (rows, channels, side or height, side or width)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator, dtype=parts.precision.parameter_dtype)
    places = torch.arange(rows) + parts.world.rank * rows
    return Batch(x.contiguous(memory_format=torch.channels_last), places % len(training.dataset.classes), places)
