"""Timing a ladder's variants in turns, chunk by chunk of steps."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.common.timing import one_line
from bench.ladder.variants import Variant
from fastarat.common.console import notice
from fastarat.common.turns import take_turns
from fastarat.data.loading.loader import Batch
from fastarat.training.tuning.chunks import WARM_UP, chunk, steps_for
from fastarat.training.tuning.gate import Verdict
from fastarat.training.tuning.subject import Subject

TURN_SECONDS = 1.5
"""about what one variant's turn takes, a step of warm-up and a chunk of steps"""


@dataclass(frozen=True)
class LadderEffort:
    """How long is measured."""

    repeats: int
    """turns, in each of which every variant runs a chunk of steps"""
    steps: int | None = None
    """of a chunk; None: as many as take a second, two at least"""
    deadline: float = float("inf")
    """of time.monotonic(): no variant begins and no turn is taken after it"""


@dataclass
class Rung:
    """A variant on its way through the ladder."""

    name: str
    variant: Variant
    verdict: Verdict | None = None
    problem: str | None = None
    subject: Subject | None = None
    feed: Iterator[Batch] | None = None
    form: str = ""
    """which of several builds was the fastest"""
    forms: dict[str, float | str] = field(default_factory=dict)
    """images/s of each of several builds (of one: 0), or what is wrong with it"""
    ready_seconds: float = 0.0
    """to build it and take the steps of the comparison, compiling as it goes"""
    peak_memory: float | None = None
    launches: int | None = None
    step_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """images/s of each turn"""

    def close(self) -> None:
        """Let go of what runs."""
        if self.subject is not None:
            self.subject.close()
        self.subject = self.feed = None

    def fail(self, problem: str) -> None:
        """No speed for this one."""
        notice(f"{self.name}: {problem}")
        self.problem = problem
        self.rates.clear()
        self.close()


def time_in_turns(rungs: Sequence[Rung], effort: LadderEffort, advance: Callable[[float], None]) -> None:
    """Time all rungs in turns. One that fails on the way, or whose weights are not finite in the end, is out."""
    steps = {}
    for rung in _running(rungs):
        with _out_if_it_fails(rung):
            _, rate = _timed(rung, 1 if effort.steps == 1 else WARM_UP)
            steps[rung.name] = effort.steps or steps_for(rung.variant.setting, rate)
    running = _running(rungs)
    for rung in take_turns(running, effort.repeats, effort.deadline):
        with _out_if_it_fails(rung):
            if rung.subject is not None:
                milliseconds, rate = _timed(rung, steps[rung.name])
                rung.step_ms += milliseconds
                rung.rates.append(rate)
        advance(1 / effort.repeats / len(running))
    for rung in _running(rungs):
        with _out_if_it_fails(rung):
            assert rung.subject is not None
            if not rung.subject.is_finite():
                raise ValueError("WRONG: the weights are not finite after the timed steps")


def count_launches(rungs: Sequence[Rung]) -> None:
    """Count what the GPU runs in a step of each rung that runs. A profiler that was once at work slows every launch
    after it, and may end the process where there are many CUDA graphs."""
    for rung in _running(rungs):
        with suppress(Exception):
            rung.launches = _launches(rung)


def _running(rungs: Sequence[Rung]) -> list[Rung]:
    return [rung for rung in rungs if rung.subject is not None]


@contextmanager
def _out_if_it_fails(rung: Rung) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        rung.fail(one_line(error))


def _timed(rung: Rung, steps: int) -> tuple[list[float], float]:
    assert rung.subject is not None and rung.feed is not None
    return chunk(rung.subject, rung.feed, rung.variant.setting, steps)


def _launches(rung: Rung) -> int:
    """Kernels, copies and fills that the GPU runs in one step."""
    assert rung.subject is not None and rung.feed is not None
    with rung.subject.flags(), profile(activities=[ProfilerActivity.CUDA]) as recorded:
        rung.subject.step(next(rung.feed))
        torch.cuda.synchronize()
    events = recorded.events() or []
    return sum(event.device_type == DeviceType.CUDA for event in events)
