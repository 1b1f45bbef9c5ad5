"""Command-line parsing: a dataclass in, an instance out, one line for whatever is wrong; what several commands share.

Nothing here or in a settings file imports torch, so that `--help` answers at once.
"""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import tyro

from fastarat.common.console import notice
from fastarat.common.errors import UserError, did_you_mean
from fastarat.common.typed import wrong_count
from fastarat.config import Config, Fidelity, recipes

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
LEAST_COLUMNS = 40


@dataclass(frozen=True, kw_only=True)
class Printed:
    """The flag of all commands whose result a program may read."""

    json: bool = False
    """print JSON for a program to read"""


def parse(arguments: type[T], args: list[str], prog: str, default: T | None = None, first: str = "") -> T:
    """Parse `args` into the dataclass `arguments`; nested fields are flags like `--attack.steps`.

    `--help` prints and exits 0; `first` is what its usage has before the options. Raises `UserError` with one line for
    anything that does not fit.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    config = (tyro.conf.AvoidSubcommands,)
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured), _wide_enough():
            return tyro.cli(arguments, args=args, prog=f"{prog} {first}".strip(), config=config, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(captured.getvalue(), default, prog)) from stop


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """In a terminal of a few columns tyro would never end; its lines are broken there instead."""
    given = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns >= LEAST_COLUMNS:
        yield
        return
    os.environ["COLUMNS"] = str(LEAST_COLUMNS)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if given is not None:
            os.environ["COLUMNS"] = given


def _one_line(boxed: str, default: Any, prog: str) -> str:
    """tyro answers with a box of several lines; keep what is wrong, and add the nearest right flag.

    The box is drawn with other characters where the terminal's encoding has no lines.
    """
    lines = [line.strip("│╭╮╰╯ ") for line in boxed.splitlines()][1:]  # the first is a title
    parts = groupby(lines, key=lambda line: not line.strip("─-"))
    text = next((" ".join(part) for is_rule, part in parts if not is_rule), boxed)
    wrong = re.match(r"Unrecognized options: ([\w.-]+)", text)
    word = wrong.group(1) if wrong else ""
    if default is not None and word in recipes.names():
        return f"the recipe comes first: {prog} {word} …"
    if word.startswith("--"):
        flag = word
        hint = "" if default is None else did_you_mean(flag, flags(default), str)
        return f"unknown option {flag}: see '{prog} --help'{hint}"
    return f"{_of_number(text) or text[:1].lower() + text[1:]} (see '{prog} --help')"


def _of_number(text: str) -> str | None:
    """What is wrong with the value of a flag that takes numbers, whichever way tyro says it; None for other flags."""
    said = re.match(r"Error parsing (--[\w.-]+): ([^'\"]*)'(.*)'", text)
    if said is None:
        return None
    flag, why, value = said.groups()
    if flag.endswith("-255") and value.endswith("/255"):
        return f"{flag} '{value}' is no number: give {value.removesuffix('/255')}"
    kinds = {
        "valid parse": "numbers",
        "parse arguments": "numbers",
        "float": "a number",
        "int(": "a whole number",
        "|int": "a whole number",
    }
    kind = next((kind for sign, kind in kinds.items() if sign in why.lower()), None)
    return kind and f"{flag} '{value}': give {kind}"


def recipe_of(args: list[str]) -> tuple[Config, list[str]]:
    """The recipe that `[RECIPE] [overrides]` name, by default `recipes.DEFAULT`, and the overrides. Raises `UserError`
    for an unknown name."""
    named, rest = named_recipe(args)
    fidelity: Fidelity = "published-code" if value_of(rest, "--fidelity") == "published-code" else "paper"
    return in_norm(recipes.recipe(recipes.DEFAULT if named is None else named, fidelity), rest), rest


def in_norm(config: Config, args: list[str]) -> Config:
    """`config` as what `args` override: without its radii and step sizes if they name another norm, in which these
    numbers would be another threat model."""
    if value_of(args, "--attack.norm") in (None, config.attack.norm):
        return config
    attack = replace(config.attack, eps_255=None, step_255=None)
    return replace(config, attack=attack, evaluation=replace(config.evaluation, eps_255=None, step_255=None))


def named_recipe(args: list[str]) -> tuple[str | None, list[str]]:
    """The name that `args` begin with or give as `--recipe NAME`, and the others. Raises `UserError` for two names."""
    named = [args[0]] if args and not args[0].startswith("-") else []
    rest, flagged = args[len(named) :], value_of(args, "--recipe")
    if flagged is not None:
        named, rest = [*named, flagged], without(rest, "--recipe")
    if len(set(named)) > 1:
        raise UserError(f"{named[0]} and --recipe {flagged} are two recipes: give one")
    return (named[0] if named else None), rest


def value_of(args: list[str], flag: str) -> str | None:
    """What a flag is given, the last time it is."""
    found = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found


def without(args: list[str], flag: str) -> list[str]:
    """`args` without a flag and its value."""
    dropped = {j for i, arg in enumerate(args) if arg == flag for j in (i, i + 1)}
    return [arg for i, arg in enumerate(args) if i not in dropped and not arg.startswith(f"{flag}=")]


def flags(value: Any, prefix: str = "--") -> list[str]:
    """All flags of a dataclass instance, as they are typed: `--batch`, `--attack.steps`, …"""
    hints = get_type_hints(type(value), include_extras=True)
    found: list[str] = []
    for field in fields(value):
        given = [mark.name for mark in getattr(hints[field.name], "__metadata__", ()) if hasattr(mark, "name")]
        name = next((name for name in given if name is not None), field.name.replace("_", "-"))
        child = getattr(value, field.name)
        if is_dataclass(child):
            found += flags(child, f"{prefix}{name}." if name else prefix)
        else:
            found.append(prefix + name)
    return found


def require_positive(arguments: object, *names: str) -> None:
    """Raise `UserError` for a count among these flags that is given and below 1, or too large."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and (fix := wrong_count(value, 1)):
            raise UserError(f"--{name.replace('_', '-')} {value}: {fix}")


def named_device(name: str) -> "torch.device":
    """The device that `--device` names; `auto` is the GPU where there is one, and is told. Raises `UserError` for a GPU
    that is not there, or that torch cannot use."""
    import torch

    from fastarat.training.compiling.toolchain import why_no_gpu

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no GPU that torch can use; leave it out for the CPU")
    if name == "auto":
        if reason := why_no_gpu():
            raise UserError(f"{reason}; --device cpu works without")
        name = "cuda" if torch.cuda.is_available() else "cpu"
        notice(f"device: {name}")
    return torch.device(name)
