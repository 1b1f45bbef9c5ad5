"""What the benchmarks' command lines share: errors of one line, and flags that several have."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from fastarat.console import notice
from fastarat.errors import UserError, WorkError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def run(name: str, main: Callable[[list[str] | None], int], args: list[str] | None) -> int:
    """`main`'s exit code; 2 for what cannot be run, 1 for a failure in work, each with one line that says why."""
    try:
        return main(args)
    except (UserError, WorkError) as e:
        notice(f"{name}: error: {e}")
        return 2 if isinstance(e, UserError) else 1


def run_as_script(name: str, main: Callable[[], int]) -> NoReturn:
    """Exit with `main`'s code; Ctrl-C is one line too."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        notice(f"{name}: interrupted; the rows that are finished are written")
        sys.exit(1)


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
