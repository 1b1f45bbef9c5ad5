"""What a logger is, which ones there are, and how a training opens them."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any, Protocol

from fastarat.common.console import notice
from fastarat.common.errors import Interrupted, UserError, WorkError, first_line, unknown
from fastarat.common.signals import number_of
from fastarat.common.typed import fits
from fastarat.runs.run import Run
from fastarat.training.loggers.notebook import in_notebook
from fastarat.training.loggers.wandb import check_login

LOGGERS = {
    "tensorboard": "fastarat.training.loggers.tensorboard:TensorBoard",
    "csv": "fastarat.training.loggers.csv:CSV",
    "wandb": "fastarat.training.loggers.wandb:WandB",
    "mlflow": "fastarat.training.loggers.mlflow:MLflow",
    "notebook": "fastarat.training.loggers.notebook:Notebook",
}
"""the places that `--log` names: a line each"""
PACKAGES = ("tensorboard", "wandb", "mlflow")
"""those that need the package of their name, which is an extra of its name"""
AUTO = "auto"
"""TensorBoard's events, where TensorBoard is installed, and in a notebook the learning curves under the cell"""
OTHERWISE = f"or another --log, such as {AUTO}"
"""what a run does without a place that it cannot have: one that goes on would take it up again"""


class Logger(Protocol):
    """Takes the numbers of a training epoch by epoch; made by `(run, first_step)`, in the first process alone.

    A training that is resumed at `first_step` writes the steps after it once more.
    """

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers after `step` steps, by their tags (`train/loss`). Raises `WorkError` if they cannot be kept."""

    def close(self, code: int) -> None:
        """Write what is left, and that the training ended with this exit code: 0 at its end, above 128 where a signal
        stopped it, else 1."""


def numbers_of(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl` by their tags."""
    numbers = {name: entry[name] for name in ("learning_rate", "images_per_s") if name in entry}
    for group in ("train", "evaluation"):
        numbers |= {f"{group}/{name}": value for name, value in entry.get(group, {}).items()}
    return {tag: number for tag, number in numbers.items() if isinstance(number, float)}


def chosen_loggers(named: Sequence[str] | None, begun: Run | None) -> tuple[str, ...]:
    """The loggers that are `named`; where none are, those that a run which goes on (`begun`) has so far, else `auto`.

    Raises `UserError` for a logger that there is not, whose package is not installed, or that lets nobody in.
    """
    names = _so_far(begun) if named is None else tuple(named)
    for name in names:
        if name not in (AUTO, *LOGGERS):
            raise unknown("logger", name, (AUTO, *LOGGERS))
        if name in PACKAGES and find_spec(name) is None:
            raise UserError(f"--log {name}: {name} is not installed: pip install 'fastarat[{name}]', {OTHERWISE}")
        if name == "wandb":
            check_login()
        if name == "notebook" and not in_notebook():
            raise UserError(f"--log notebook: this is none; call fastarat.train in a cell of one, {OTHERWISE}")
    return names


def _so_far(begun: Run | None) -> tuple[str, ...]:
    """Those that the last session of a run had; `auto` where none are recorded."""
    session = begun.last_session() if begun else None
    recorded = (session or {}).get("loggers", [AUTO])
    return tuple(recorded) if fits(recorded, tuple[str, ...]) else (AUTO,)


def found_here() -> list[str]:
    """The loggers that `auto` stands for."""
    return ["tensorboard"] * (find_spec("tensorboard") is not None) + ["notebook"] * in_notebook()


class Loggers:
    """All loggers of a training, in its first process; none is open in the others.

    Of a place that cannot take its numbers nothing is lost but these: it is left out, with a line. So is one that
    `auto` alone has chosen, and whose package turns out to be broken.
    """

    def __init__(self, names: Sequence[str], run: Run):
        self.names, self.run = names, run
        self.opened: dict[str, Logger] = {}

    def open(self, first_step: int) -> None:
        """Begin, or go on, after `first_step` steps. Raises `UserError` for a place that was asked for by its name and
        does not let us in, `WorkError` where a file of the run cannot be written."""
        named = [[name] if name != AUTO else found_here() for name in self.names]
        for name in dict.fromkeys(chain.from_iterable(named)):
            try:
                self.opened[name] = _made(name)(self.run, first_step)
            except Exception as error:  # a package of others may be broken in any way
                if name not in self.names:
                    notice(f"--log {AUTO}: no {name} ({first_line(error)}), metrics.jsonl has everything")
                elif isinstance(error, UserError | WorkError):
                    raise
                else:
                    fix = "give --resume another --log, such as auto"
                    raise UserError(f"--log {name}: {first_line(error)}: {fix}") from error

    def write(self, entry: dict[str, Any]) -> None:
        """Hand on a line of `metrics.jsonl`. Raises `WorkError` where a file of the run cannot be written."""
        numbers = numbers_of(entry)
        for name, logger in list(self.opened.items()):
            try:
                logger.write(entry["step"], numbers)
            except WorkError:
                raise
            except Exception as error:  # a service of others may fail in any way
                notice(f"--log {name}: {first_line(error)}; left out from here on, metrics.jsonl has everything")
                with suppress(Exception):
                    self.opened.pop(name).close(1)

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """End all, and tell them how the training has ended."""
        is_stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        code = 128 + number_of(error) if is_stopped else int(error is not None)
        for name, logger in self.opened.items():
            try:
                logger.close(code)
            except Exception as failure:
                notice(f"--log {name}: {first_line(failure)} at its end; metrics.jsonl has everything")


def _made(name: str) -> Callable[[Run, int], Logger]:
    module, _, attribute = LOGGERS[name].partition(":")
    return getattr(import_module(module), attribute)
