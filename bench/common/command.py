"""What the benchmarks' command lines share: flags that several have, defaults, how they report and end."""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import torch

from bench.common.rows import Row
from fastarat.common.console import print_json, stdout
from fastarat.common.ending import ended
from fastarat.common.errors import Interrupted, UserError, unknown
from fastarat.common.heap import keep_freed_memory
from fastarat.common.signals import number_of
from fastarat.training.compiling.toolchain import why_no_gpu

FLAGS: dict[str, dict[str, Any]] = {
    "data": {"help": "a data set's name or path; default: random images of its size"},
    "device": {"choices": ("cuda", "cpu"), "help": "default: cuda where there is a GPU"},
    "repeats": {"type": int},
    "rows": {"type": Path, "help": "where rows go (GPU: the benchmark's file in bench/results; CPU, smoke: nowhere)"},
    "budget": {"type": float, "metavar": "SECONDS", "help": "end in time, with what was measured till then"},
    "resume": {"action": "store_true", "help": "leave out what has rows of this commit, machine and data"},
    "smoke": {"action": "store_true", "help": "tiny sizes: does everything run?"},
    "json": {"action": "store_true", "help": "print the rows as JSON instead of tables"},
}
"""what `argparse` is told of the flags that several benchmarks have"""


class Parser(argparse.ArgumentParser):
    """The flags of the command `name`, which says what is wrong in one line. `description`: its module's docstring."""

    def __init__(self, name: str, description: str | None):
        super().__init__(name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(message)


def flags(parser: argparse.ArgumentParser, *names: str, **helps: str) -> None:
    """Add these of `FLAGS`; those given by keyword have a help of their own."""
    for name in dict.fromkeys((*names, *helps)):
        settings = FLAGS[name] if name not in helps else {**FLAGS[name], "help": helps[name]}
        parser.add_argument(f"--{name}", **settings)


def parsed(
    parser: argparse.ArgumentParser, args: list[str] | None, without_gpu: str, **defaults: tuple[Any, Any, Any]
) -> argparse.Namespace:
    """The flags, with the device; raises `UserError` for what is wrong with them, if cuda is asked for in vain, or if
    there is a GPU that torch cannot use.

    `without_gpu`: what `--device cpu` does instead. `defaults`: what a flag that is not given is in a smoke run, on a
    GPU and on a CPU.
    """
    arguments = parser.parse_args(args)
    has_gpu = torch.cuda.is_available()
    if arguments.device != "cpu" and (reason := why_no_gpu()):
        raise UserError(f"{reason}, or give --device cpu, which {without_gpu}")
    if arguments.device == "cuda" and not has_gpu:
        raise UserError(f"this machine has no GPU: give --device cpu, which {without_gpu}")
    arguments.device = arguments.device or ("cuda" if has_gpu else "cpu")
    case = 0 if getattr(arguments, "smoke", False) else 1 if arguments.device == "cuda" else 2
    for name, default in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default[case])
    return arguments


def program(name: str) -> Callable[[Callable[[list[str] | None], int]], Callable[..., int]]:
    """Make `main`, from flags to an exit code, a command that ends as `fastarat.common.ending` has it."""

    def of(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
        @wraps(main)
        def run(args: list[str] | None = None) -> int:
            def work() -> int:
                keep_freed_memory()
                try:
                    return main(args)
                except KeyboardInterrupt as error:
                    stopped = f"{name}: interrupted; the rows that are finished are written"
                    raise Interrupted(stopped, number_of(error)) from error

            return ended(name, work)

        return run

    return of


def report(
    rows: list[Row],
    arguments: argparse.Namespace,
    print_tables: Callable[[list[Row]], None],
    headline: Callable[[Sequence[Row]], str],
) -> int:
    """Print the rows as --json, or their tables and the headline. The exit code: 0 if every row is right, 1 if not."""
    if arguments.json:
        print_json(rows)
    elif not rows:
        stdout.print(
            f"Nothing was measured: give a longer --budget{', or no --resume' * hasattr(arguments, 'resume')}."
        )
    else:
        print_tables(rows)
        if line := headline(rows):
            stdout.print(line, markup=False)
    return 0 if all(row["correct"] for row in rows) else 1


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UserError` for a name that is not `known`."""
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)


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


def limit_images(
    arguments: argparse.Namespace, *, num_images: int | None, num_autoattack: int | None, most: int
) -> None:
    """Make both numbers of `arguments` those that are asked for, else these (None: all), within what there is.

    There are `most` test images; AutoAttack attacks some of `num_images`.
    """
    for name, default in (("num_images", num_images), ("num_autoattack", num_autoattack)):
        asked = default if getattr(arguments, name) is None else getattr(arguments, name)
        most = most if asked is None else min(asked, most)
        setattr(arguments, name, most)


def check_spread(repeats: int) -> None:
    """Raise `UserError` for a single turn."""
    if repeats == 1:
        raise UserError("--repeats is 1: one turn has no spread, give 2 or more")


def folder(flag: str, path: Path) -> Path:
    """The folder that a flag names, absolute, made if need be. Raises `UserError` if it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {flag} {path}: {error.strerror}: give another folder") from error
    return path.resolve()


def check_writable(path: Path | None) -> None:
    """Raise `UserError` if rows are to go to this file and cannot be written to it."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"cannot write --rows {path}: {error.strerror}: give another file") from error
