"""Turns: what is compared runs in alternation, and is compared turn by turn."""

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TypeVar

from fastarat.common.console import notice

Item = TypeVar("Item")


def in_turn(items: Sequence[Item], turn: int) -> Sequence[Item]:
    """The items in the order that they have in a turn: every other turn goes backwards."""
    return items if turn % 2 == 0 else items[::-1]


def take_turns(items: Sequence[Item], turns: int, deadline: float = float("inf")) -> Iterator[Item]:
    """Every item once a turn, so that a change of clocks or a neighbour's load meets all alike.

    No turn begins after `deadline` (of `time.monotonic()`), but for the first two: one alone has no spread.
    """
    for turn in range(turns):
        if turn >= 2 and time.monotonic() > deadline:
            notice(f"budget: {turn} of {turns} turns")
            return
        yield from in_turn(items, turn)


def ratio_of(mine: Sequence[float], its: Sequence[float]) -> dict[str, float]:
    """How many times `its`, turn by turn: the least, the median and the most. What one alone took is left out."""
    found = sorted(a / b for a, b in zip(mine, its, strict=False))
    return {"low": found[0], "median": median(found), "high": found[-1]}


def ratio_text(found: dict[str, float] | None) -> str:
    """A ratio with the least and the most of its turns, if they differ; unresolved if they leave open which of the two
    is faster."""
    if found is None:
        return "-"
    low, median, high = (f"{found[name]:.2f}" for name in ("low", "median", "high"))
    if found["low"] == found["high"]:
        return "1" if found["median"] == 1 else median
    return f"unresolved ({low}-{high})" if found["low"] <= 1 <= found["high"] else f"{median} ({low}-{high})"
