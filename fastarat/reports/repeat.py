"""The commands that repeat a run, and those that go beyond it."""

import shlex
from collections.abc import Iterator
from typing import Any

from fastarat.config import recipes
from fastarat.reports.facts import Facts


def commands(facts: Facts) -> list[tuple[str, str]]:
    """What was typed, session by session, the same as a recipe with flags, and what goes beyond it; each with its
    purpose."""
    typed = [session.get("command") for session in facts.sessions]
    lines = [
        ("as it was started" if i == 0 else "as it went on", f"fastarat {shlex.join(map(str, args[1:]))}")
        for i, args in enumerate(typed)
        if isinstance(args, list) and args[1:2] == ["train"]
    ]
    run = shlex.quote(str(facts.path))
    if facts.config.recipe in recipes.names():
        lines.append(("the recipe, and what differs from it", as_command(facts)))
    return [
        *lines,
        ("the same settings, from the run", f"fastarat train --from {run}"),
        ("with another seed", f"fastarat train --from {run} --seed {facts.config.seed + 1}"),
        ("by the standard's attacks", f"fastarat eval {run} --attack autoattack"),
        ("a look inside", f"fastarat analyze {run}"),
        ("this page anew", f"fastarat report {run}"),
    ]


def as_command(facts: Facts) -> str:
    """The command that trains by all of a run's settings, without the run. Raises `UserError` for an unknown recipe."""
    config = facts.config
    words = ["fastarat", "train", config.recipe]
    if config.fidelity != "paper":
        words += ["--fidelity", config.fidelity]
    theirs = recipes.recipe(config.recipe, config.fidelity)
    if config.data.rpartition("/")[2] != theirs.data:
        words += ["--data", config.data]
    for name, (_, value) in facts.changed_settings().items():
        words += _flag(name, value)
    return shlex.join(words)


def _flag(name: str, value: Any) -> Iterator[str]:
    """A setting as it is typed."""
    if isinstance(value, bool):
        owner, _, last = name.rpartition(".")
        yield f"--{name}" if value else f"--{owner}.no-{last}" if owner else f"--no-{last}"
        return
    yield f"--{name}"
    yield from map(str, value) if isinstance(value, tuple | list) else (str(value),)
