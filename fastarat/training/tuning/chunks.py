"""Timing of steps: a chunk of them at once, on a GPU without waiting for it in between."""

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from fastarat.data.loading.loader import Batch
from fastarat.training.tuning.subject import StepSetting, Subject

WARM_UP = 3
"""calls or steps before anything is captured or timed: compilation, autotuning, workspaces"""
_CHUNK_SECONDS = 1.0
_MOST_STEPS = 200


def steps_for(setting: StepSetting, rate: float) -> int:
    """How many steps take about a second at `rate` images/s."""
    return min(max(round(_CHUNK_SECONDS * rate / setting.config.batch), 2), _MOST_STEPS)


def chunk(subject: Subject, feed: Iterator[Batch], setting: StepSetting, steps: int) -> tuple[list[float], float]:
    """Milliseconds of each of `steps` steps with the loading of their batches, and images/s over all of them."""
    on_gpu = setting.device.type == "cuda"
    with subject.flags():
        subject.step(next(feed))  # what the last chunk left behind is not timed
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        marks = [mark(on_gpu)]
        for _ in range(steps):
            subject.step(next(feed))
            marks.append(mark(on_gpu))
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return [milliseconds(a, b) for a, b in pairwise(marks)], steps * setting.config.batch / seconds


def mark(on_gpu: bool) -> Any:
    """Now: on a GPU when it gets there, without waiting for it."""
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(first: Any, last: Any) -> float:
    """Between two marks; on a GPU only once it has passed both."""
    return (last - first) * 1e3 if isinstance(first, float) else first.elapsed_time(last)
