"""What a training shows of itself: a line on the terminal, its learning curves."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn
from rich.table import Column
from rich.text import Text

from fastarat.common.console import notice, one_line, stderr
from fastarat.common.durations import Seldom, duration
from fastarat.common.figures import COLOURS, figure_of, label_of, legend, more_colours
from fastarat.runs.metrics import accuracies, attack_name

T = TypeVar("T")

_SECONDS_BETWEEN_LOG_LINES = 1.0


class _Description(TextColumn):
    """What a task is, and of one that only waits for how long, and how much longer where that is known."""

    def render(self, task: Task) -> Text:
        text, elapsed = super().render(task), task.elapsed or 0
        if not task.fields.get("waits"):
            return text
        expected = task.fields.get("expected")
        left = "" if expected is None or elapsed > expected else f" · {duration(expected - elapsed)} left"
        return text.append(f" · {duration(elapsed)}{left}")


class Display:
    """Shows steps, epochs and the time left: a live bar on a terminal, one plain line an epoch in any case, and without
    a terminal some between them where an epoch takes minutes.

    `visible` is off on all processes but the first.
    """

    def __init__(self, num_steps: int, first_step: int, epochs: int, visible: bool):
        self.num_steps, self.first_step, self.epochs, self.visible = num_steps, first_step, epochs, visible
        self.started = self.last_line = time.monotonic()
        self.measured = ""
        self.look: Callable[[], None] = lambda: None
        """what a process does between two pieces of other work than steps, of which it may have another number than the
        others; it may raise `Interrupted`"""
        self.look_together: Callable[[], None] = lambda: None
        """the same, where all processes have as many"""
        live = visible and stderr.is_terminal
        self.seldom = None if live or not visible else Seldom()
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
        """Update the live line; without a terminal say from time to time how far it is."""
        self.last_line = time.monotonic()
        left, speed, at = f"{self.left(step)} left", f"{images_per_s:,.0f} images/s", f"epoch {epoch}/{self.epochs}"
        measured = [self.measured] if self.measured else []
        text = " · ".join([left, at, speed, *measured, *_described(metrics)])
        self.bar.update(self.task, completed=step, description=text)
        if images_per_s:  # after the first step nothing is known
            self._log(f"{at} · step {step:,} of {self.num_steps:,} · {speed} · {left}")

    def _log(self, text: str) -> None:
        if self.seldom and self.seldom.is_due():
            notice(text)

    def _spoken(self) -> None:
        if self.seldom:
            self.seldom.spoken()

    @contextmanager
    def waiting(self, text: str, expected: float | None = None) -> Iterator[None]:
        """Say what is waited for, and on a terminal for how long already, of `expected` seconds where that is known."""
        self.note(text)
        task = self.bar.add_task(text, total=None, waits=True, expected=expected)
        try:
            yield
        finally:
            self.bar.remove_task(task)

    def note(self, text: str) -> None:
        """Print a plain line."""
        if self.visible:
            notice(text)
            self._spoken()

    def count_from(self, step: int) -> None:
        """Measure the time left from here: what went before was no training."""
        self.started, self.first_step = time.monotonic(), step

    def counter(self, total: int, text: str) -> Callable[[float], None]:
        """A function that is told of finished items of something other than steps, and shows time left; it looks."""
        show = self._shown(total, text)

        def advance(amount: float) -> None:
            self.look()
            show(amount)

        return advance

    def _shown(self, total: int, text: str) -> Callable[[float], None]:
        started, done = time.monotonic(), 0.0

        def advance(amount: float) -> None:
            nonlocal done
            done += amount
            left = (time.monotonic() - started) * (total / done - 1) if done else 0.0
            shown = f"{text} {done:.0f}/{total} · {duration(max(left, 0.0))} left"
            self.bar.update(self.task, description=shown)
            self._log(shown)

        self.bar.update(self.task, description=text)
        return advance

    def counted(self, items: Iterable[T], total: int, text: str) -> Iterator[T]:
        """The items, as many in all processes, shown as they go by; it looks before each."""
        advance = self._shown(total, text)
        for item in items:
            self.look_together()
            yield item
            advance(1)

    def epoch(self, entry: dict[str, Any], step: int) -> None:
        """Print an epoch's plain line."""
        if not self.visible:
            return
        parts = [f"epoch {entry['epoch']}/{self.epochs}", *_described(entry["train"])]
        if "evaluation" in entry:
            self.measured = accuracies(entry["evaluation"])
            parts.append(self.measured)
        parts += [f"{entry['images_per_s']:,.0f} images/s"] if "images_per_s" in entry else []
        parts += [f"{self.left(step)} left"]
        stderr.print(" · ".join(parts))
        self._spoken()


def _described(metrics: dict[str, float]) -> list[str]:
    """Losses as they are, accuracies in percent."""
    return [
        f"{name.replace('_', ' ')} " + (f"{100 * value:.1f} %" if name.endswith("accuracy") else f"{value:.3f}")
        for name, value in metrics.items()
    ]


def learning_curves(path: Path, runs: dict[str, list[dict[str, Any]]], title: str) -> None:
    """Draw loss and accuracies over epochs as a PNG.

    `runs`: the lines of `metrics.jsonl` by the name each run gets in the legend.
    """
    few = len(runs) <= len(COLOURS)  # else names in one of the two legends have to do
    with figure_of(path, 1, 2, (10, 3.8)) as (_, ((left, right),)):
        for colour, (name, lines) in zip(COLOURS if few else more_colours(), runs.items(), strict=False):
            epochs = [line for line in lines if "train" in line]
            losses = [e["train"]["loss"] for e in epochs]
            left.plot([e["epoch"] for e in epochs], losses, color=colour, label=label_of(name))
            measured = [line for line in epochs if "evaluation" in line]
            for kind, style in (("clean", "-"), ("robust", "--")):
                values = [e["evaluation"][kind] for e in measured]
                label = label_of(f"{name}, {kind}") if few else kind if name == next(iter(runs)) else None
                right.plot([e["epoch"] for e in measured], values, style, marker=".", color=colour, label=label)
        left.set(xlabel="epoch", ylabel="training loss", title=one_line(title, 60))
        right.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 100), title=_evaluation_of(runs))
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
            legend(axes, fontsize=8)


def _evaluation_of(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Of which images accuracies are, and what robust is against: of the first, and whether there are others."""
    found = [line["evaluation"] for lines in runs.values() for line in lines if "evaluation" in line]
    first, *others = dict.fromkeys(map(_measure_of, found)) or [""]
    return f"{first} and others" if others else first


def _measure_of(evaluation: dict[str, Any]) -> str:
    num_attacked, kind = evaluation["num_images"], f"{evaluation['images']} images"
    num_clean, attack = evaluation.get("num_clean_images", num_attacked), attack_name(evaluation)
    if num_clean == num_attacked:
        return f"{num_attacked:,} {kind}, robust against {attack}"
    return f"{num_clean:,} {kind}, {num_attacked:,} of them against {attack}"
