"""Progress of a training: a live bar on a terminal, one plain line an epoch in any case."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn
from rich.table import Column
from rich.text import Text

from fastarat.common.console import notice, stderr

T = TypeVar("T")

_SECONDS_BETWEEN_LOG_LINES = 1.0


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 20 s, 1 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Description(TextColumn):
    """What a task is, and of one that only waits for how long."""

    def render(self, task: Task) -> Text:
        text = super().render(task)
        return text.append(f" · {duration(task.elapsed or 0)}") if task.fields.get("waits") else text


class Display:
    """Shows steps, epochs and the time left. `visible` is off on all processes but the first."""

    def __init__(self, num_steps: int, first_step: int, epochs: int, visible: bool):
        self.num_steps, self.first_step, self.epochs, self.visible = num_steps, first_step, epochs, visible
        self.started = self.last_line = time.monotonic()
        self.measured = ""
        live = visible and stderr.is_terminal
        # On a narrow terminal the text is cut at its end, where the least important stands.
        text = _Description("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        columns = (BarColumn(20), MofNCompleteColumn(), text)
        self.bar = Progress(*columns, console=stderr, disable=not live, transient=True)
        self.task = self.bar.add_task("starting", total=num_steps, completed=first_step)

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def due(self) -> bool:
        """Whether it is time for a log line: only then is the device asked for numbers."""
        return time.monotonic() - self.last_line >= _SECONDS_BETWEEN_LOG_LINES

    def left(self, step: int) -> str:
        """The time left, from the mean speed since the start or the resume."""
        done = step - self.first_step
        if not done:
            return "?"
        return duration((time.monotonic() - self.started) / done * (self.num_steps - step))

    def line(self, step: int, epoch: int, metrics: dict[str, float], images_per_s: float) -> None:
        """Update the live line."""
        self.last_line = time.monotonic()
        parts = [f"{self.left(step)} left", f"epoch {epoch}/{self.epochs}", f"{images_per_s:,.0f} images/s"]
        parts += [self.measured] if self.measured else []
        self.bar.update(self.task, completed=step, description=" · ".join([*parts, *_described(metrics)]))

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Say what is waited for, and on a terminal for how long already."""
        self.note(text)
        task = self.bar.add_task(text, total=None, waits=True)
        try:
            yield
        finally:
            self.bar.remove_task(task)

    def note(self, text: str) -> None:
        """Print a plain line."""
        if self.visible:
            notice(text)

    def count_from(self, step: int) -> None:
        """Measure the time left from here: what went before was no training."""
        self.started, self.first_step = time.monotonic(), step

    def counter(self, total: int, text: str) -> Callable[[float], None]:
        """A function that is told of finished items of something other than steps, and shows time left."""
        started, done = time.monotonic(), 0.0

        def advance(amount: float) -> None:
            nonlocal done
            done += amount
            left = (time.monotonic() - started) * (total / done - 1) if done else 0.0
            shown = f"{text} {done:.0f}/{total} · {duration(max(left, 0.0))} left"
            self.bar.update(self.task, description=shown)

        self.bar.update(self.task, description=text)
        return advance

    def counted(self, items: Iterable[T], total: int, text: str) -> Iterator[T]:
        """The items, shown as they go by."""
        advance = self.counter(total, text)
        for item in items:
            yield item
            advance(1)

    def epoch(self, entry: dict[str, Any], step: int) -> None:
        """Print an epoch's plain line."""
        if not self.visible:
            return
        parts = [f"epoch {entry['epoch']}/{self.epochs}", *_described(entry["train"])]
        if "evaluation" in entry:
            held = entry["evaluation"]
            self.measured = f"{held['images']}: clean {held['clean']:.1f} %, robust {held['robust']:.1f} %"
            self.measured += doubts(held)
            parts.append(self.measured)
        parts += [f"{entry['images_per_s']:,.0f} images/s", f"{self.left(step)} left"]
        stderr.print(" · ".join(parts))


def doubts(evaluation: dict[str, Any]) -> str:
    """What a training's evaluation has to say beside its percentages, in brackets; '' if nothing."""
    number, undefined = (evaluation.get(name, 0) for name in ("not_attackable", "undefined_logits"))
    found = [f"not attackable: {number}"] if number else []
    found += [f"logits NaN or infinite: {undefined}"] if undefined else []
    return f" ({', '.join(found)})" if found else ""


def _described(metrics: dict[str, float]) -> list[str]:
    """Losses as they are, accuracies in percent."""
    return [
        f"{name.replace('_', ' ')} " + (f"{100 * value:.1f} %" if name.endswith("accuracy") else f"{value:.3f}")
        for name, value in metrics.items()
    ]
