"""What a comparison with pyautoattack found: result rows, and a table of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from torch import Tensor

from bench.common.rows import Row, markdown, place
from fastarat.common.console import notice, print_table
from fastarat.common.turns import ratio_of

ENGINES = ("fastarat", "pyautoattack")
POINTS = 1.0
"""of robust accuracy, that fastarat's may be above pyautoattack's"""


@dataclass
class Turn:
    """One turn's results, attack by attack."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {engine: [] for engine in ENGINES})
    cpu_seconds: dict[str, list[float]] = field(default_factory=lambda: {engine: [] for engine in ENGINES})
    """the process's own, which a machine with other work changes less"""
    robust: dict[str, list[Tensor]] = field(default_factory=lambda: {engine: [] for engine in ENGINES})
    """flags [N] after `clean` and after each attack"""
    attacked: list[int] = field(default_factory=list)
    unconfirmed: list[int] = field(default_factory=list)
    """how many of fastarat's images failed the check that is made here"""


def rows_of(turns: list[Turn], attacks: tuple[str, ...], norm: str) -> Iterator[Row]:
    """A row for each attack and one for all of them."""
    for at, name in enumerate((*attacks, "whole")):
        chosen = slice(None) if name == "whole" else slice(at, at + 1)
        seconds, cpu_seconds = (
            {engine: [sum(getattr(t, kind)[engine][chosen]) for t in turns] for engine in ENGINES}
            for kind in ("seconds", "cpu_seconds")
        )
        robust = {engine: [int(t.robust[engine][1:][chosen][-1].sum()) for t in turns] for engine in ENGINES}
        flags = [(t.robust["fastarat"][1:][chosen][-1], t.robust["pyautoattack"][1:][chosen][-1]) for t in turns]
        above = [100 * float(ours.sum() - its.sum()) / len(ours) for ours, its in flags]
        unconfirmed = sum(sum(t.unconfirmed[chosen]) for t in turns)
        yield {
            "correct": max(above) <= POINTS and not unconfirmed,
            "attack": name,
            "norm": norm,
            "clean": int(turns[0].robust["fastarat"][0].sum()),
            "attacked": [t.attacked[0 if name == "whole" else at] for t in turns],
            "robust": robust["fastarat"],
            "pyautoattack_robust": robust["pyautoattack"],
            "flags_differ": [int((ours != its).sum()) for ours, its in flags],
            "unconfirmed": unconfirmed,
            "seconds": seconds["fastarat"],
            "pyautoattack_seconds": seconds["pyautoattack"],
            "ratio": ratio_of(seconds["fastarat"], seconds["pyautoattack"]),
            "cpu_seconds": cpu_seconds["fastarat"],
            "pyautoattack_cpu_seconds": cpu_seconds["pyautoattack"],
            "cpu_ratio": ratio_of(cpu_seconds["fastarat"], cpu_seconds["pyautoattack"]),
        }


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells; several turns' counts stand in their order."""
    columns = ["attack", "images", "robust", "pyautoattack", "flags differ"]
    columns += ["s", "pyautoattack s", "time, x pyautoattack", "CPU"]
    cells = []
    for row in rows:
        counts = [row[key] for key in ("attacked", "robust", "pyautoattack_robust", "flags_differ")]
        times = [f"{median(row[key]):.1f}" for key in ("seconds", "pyautoattack_seconds")]
        ratios = [_spread(row[key]) for key in ("ratio", "cpu_ratio")]
        cells.append([row["attack"], *(" ".join(map(str, values)) for values in counts), *times, *ratios])
    return columns, cells


def _spread(ratio: Mapping[str, float]) -> str:
    around = f" ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio["low"] < ratio["high"] else ""
    return f"{ratio['median']:.2f}{around}"


def title(row: Row) -> str:
    """What was attacked."""
    return f"AutoAttack ({row['norm']}) of {row['num_images']} images of {row['dataset']}, {row['clean']} right"


def as_markdown(rows: Iterable[Row]) -> str:
    """The newest comparison of each attack; empty for no rows."""
    newest = list({row["attack"]: row for row in rows}.values())
    return f"{markdown(*table(newest))}\n{title(newest[0])}; {place(*newest)}.\n" if newest else ""


def print_tables(rows: list[Row]) -> None:
    """The table, to stdout."""
    print_table(f"{title(rows[0])}; turns in order", *table(rows))
    for row in rows:
        if not row["correct"]:
            notice(f"{row['attack']}: wrong: {row['unconfirmed']} unconfirmed, or robust counts too far apart")


def headline(rows: Sequence[Row]) -> str:
    """In a line: what both leave of the images, and their times."""
    whole = next(row for row in rows if row["attack"] == "whole")
    left, its = (" ".join(map(str, whole[key])) for key in ("robust", "pyautoattack_robust"))
    return f"robust {left}, pyautoattack {its}; time, x pyautoattack {_spread(whole['ratio'])}"
