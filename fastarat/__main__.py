"""`fastarat COMMAND …`: find the command, run it, turn errors into one line and an exit code."""

import importlib
import io
import os
import sys
from types import ModuleType

from fastarat import __version__
from fastarat.errors import UserError, WorkError, unknown
from fastarat.processes import is_first

COMMANDS = {
    "train": "train a robust model by a recipe",
    "eval": "measure clean and robust accuracy",
    "analyze": "look inside a run: losses' conflict, statistics, features, loss surface",
    "export": "write a model that needs only PyTorch",
    "convert": "read a checkpoint of the published AR-AT code",
    "verify": "check this installation against golden vectors",
    "data": "list, fetch, prepare, check and describe data sets",
    "recipes": "list the recipes, or show one",
    "doctor": "say what this machine has and what is missing",
}


def overview() -> str:
    """The text of `fastarat --help`."""
    lines = [f"  {name:10s}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"fastarat {__version__}: adversarial training of image classifiers as fast as the GPU allows",
            "",
            "usage: fastarat COMMAND …    (fastarat COMMAND --help says more)",
            "",
            *lines,
            "",
            "for example: fastarat train digits-arat",
        ]
    )


def _command(name: str) -> ModuleType:
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return importlib.import_module(f"fastarat.commands.{name.replace('eval', 'evaluate')}")


def _fail(text: object, code: int) -> int:
    # Of several processes that meet the same error, the first one says so.
    if is_first():
        print(f"fastarat: error: {' '.join(str(text).split())}", file=sys.stderr)
    return code


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0, 1 for a failure in work, or 2 for what could be known before it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without Unicode gets a '?' here and there
            stream.reconfigure(errors="replace")
    code = 0
    try:
        try:
            code = _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone: `fastarat recipes | head`
        _forget_output()
    except OSError as e:  # it goes to a file, and the disk is full
        _forget_output()
        return code or _fail(f"cannot write the output: {e.strerror}", 1)
    return code


def _forget_output() -> None:
    """Let the interpreter's end not fail on what is left of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str] | None) -> int:
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    try:
        return _command(args[0]).run(args[1:])
    except UserError as e:
        return _fail(e, 2)
    except WorkError as e:
        return _fail(e, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BrokenPipeError:
        raise
    except OSError as e:
        return _fail(f"{e.filename or 'a file'}: {e.strerror or e}", 1)


if __name__ == "__main__":
    sys.exit(main())
