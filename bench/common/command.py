"""What the benchmarks' command lines share: errors of one line, and flags that several have."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from fastarat.common.ending import ended
from fastarat.common.errors import Interrupted, UserError
from fastarat.common.signals import number_of


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def run(name: str, main: Callable[[list[str] | None], int], args: list[str] | None) -> int:
    """`main`'s exit code, or that of what ended it (`fastarat.common.ending`), with one line that says why."""

    def work() -> int:
        try:
            return main(args)
        except KeyboardInterrupt as e:
            raise Interrupted(f"{name}: interrupted; the rows that are finished are written", number_of(e)) from None

    return ended(name, work)


def device_of(asked: str | None, without_gpu: str) -> str:
    """The device: what is asked for, else cuda where there is a GPU. Raises `UserError` if cuda is asked for in vain.

    `without_gpu`: what `--device cpu` does instead.
    """
    has_gpu = torch.cuda.is_available()
    if asked == "cuda" and not has_gpu:
        raise UserError(f"this machine has no GPU: give --device cpu, which {without_gpu}")
    return asked or ("cuda" if has_gpu else "cpu")


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Raise `UserError` for a flag of these that is given and not above 0, or not finite."""
    for name in names:
        value = getattr(arguments, name)
        if value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if not abs(value) < math.inf:
            raise UserError(f"{flag} is {value}: give a finite number above 0")
        if not value > 0:
            raise UserError(f"{flag} is {value}: give a number above 0")


def check_writable(path: Path) -> None:
    """Raise `UserError` if rows cannot be written to this file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as e:
        raise UserError(f"cannot write --rows {path}: {e.strerror}: give another file") from None
