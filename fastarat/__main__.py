"""`fastarat COMMAND …`: find the command and run it."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from fastarat.common.ending import ended
from fastarat.common.errors import UserError, unknown
from fastarat.common.processes import end_with_launcher, launched
from fastarat.common.version import __version__

COMMANDS = {
    "train": "train a robust model by a recipe",
    "submit": "hand a training to Slurm, to go on whenever it was stopped",
    "tune": "find the fastest right form of a recipe's step on this machine",
    "eval": "measure clean and robust accuracy",
    "watch": "follow a training from another terminal",
    "compare": "say which differences between runs are beyond noise",
    "report": "write one page of a run, or of several beside one another",
    "analyze": "look inside a run: losses' conflict, statistics, features, loss surface",
    "export": "write a model that needs only PyTorch",
    "convert": "read a checkpoint of the published AR-AT code",
    "verify": "check this installation against golden vectors",
    "data": "list, fetch, prepare, build and check data sets, and info on one",
    "recipes": "list the recipes, or show one",
    "doctor": "say what this machine has and what is missing",
}


def overview() -> str:
    """The text of `fastarat --help`."""
    lines = "\n".join(f"  {name:10s}{text}" for name, text in COMMANDS.items())
    return (
        f"fastarat {__version__}: adversarial training of image classifiers as fast as the GPU allows\n\n"
        f"usage: fastarat COMMAND …    (fastarat COMMAND --help says more)\n\n{lines}\n\n"
        "for example: fastarat train digits-arat"
    )


def _command(name: str) -> ModuleType:
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return importlib.import_module(f"fastarat.commands.{name.replace('eval', 'evaluate')}")


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0; 1 for a failure in work, 2 for what could be known before it, 128 and more after a
    signal."""
    end_with_launcher()
    return ended("fastarat", lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    _require_working_directory()
    return _command(args[0]).run(args[1:])


def _require_working_directory() -> None:
    """Raise `UserError` where it was deleted: libraries that PyTorch loads end the process without a word of that."""
    try:
        Path.cwd()
    except OSError as error:
        why = f"{error.strerror}; it may have been deleted"
        raise UserError(f"the working directory cannot be used ({why}): cd to another one") from error


if __name__ == "__main__":
    code = main()
    if code in (1, 2) and launched():
        # What ends a process group in order would wait for the others, who wait for this one.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
