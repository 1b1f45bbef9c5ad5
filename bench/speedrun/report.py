"""What speedrun rows say: which variants reach the goal, and how many times as fast as the published way they do."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.common.rows import Row, commits, markdown, place, warned
from bench.speedrun.one_run import RaceTraining
from bench.speedrun.suites import ENDS, SUITES, Goal
from fastarat.common.errors import UserError
from fastarat.common.figures import COLOURS, figure_of
from fastarat.common.turns import ratio_of, ratio_text

COLUMNS = ["variant", "seeds", "clean, %", "AutoAttack, %", "goal", "seconds", "times as fast", "CPU time, times less"]


def races_of(suite: str, rows: Iterable[Row]) -> list[list[Row]]:
    """The suite's rows, those of one machine and data set together, the race with the most of them first; of each
    training the last one, variants in the order of their rungs.

    One that gave no model is among them: a seed that fails is no seed that reached the goal. Not among them are those
    by other settings than a rung has today, and those that were measured on fewer images than others of their race.
    """
    order = {variant: number for number, variant in enumerate(SUITES[suite].rungs)}
    races: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.get("suite") == suite and row["variant"] in order and _is_of_today(row):
            races.setdefault(_raced_in(row), []).append(row)
    found = []
    for own in races.values():
        most = max((_measured_on(row) for row in own if row["correct"]), default=None)
        counting = [row for row in own if not row["correct"] or _measured_on(row) == most]
        newest = {(order[row["variant"]], row["seed"]): row for row in counting}
        found.append([row for _, row in sorted(newest.items())])
    return sorted(found, key=lambda race: len(right(race)), reverse=True)


def race_here(suite: str, rows: Sequence[Row]) -> list[Row]:
    """The race of the suite's last row; empty for none."""
    own = [row for row in rows if row.get("suite") == suite]
    return next((race for race in races_of(suite, rows) if _raced_in(race[0]) == _raced_in(own[-1])), [])


def _is_of_today(row: Row) -> bool:
    """Whether its rung has these settings still."""
    rung = SUITES[row["suite"]].rungs[row["variant"]]
    try:
        return RaceTraining(row["suite"], row["variant"], rung, row["seed"], row["dataset"], Path()).is_of(row)
    except UserError:  # a setting that there is no more
        return False


def _raced_in(row: Row) -> tuple[Any, ...]:
    """What two rows share that can be compared; early ones name no processor."""
    return tuple(row.get(name) for name in ("dataset", "device", "gpu", "processor", "torch"))


def _measured_on(row: Row) -> tuple[int, int]:
    return row["num_autoattack"], row["num_images"]


def right(rows: Iterable[Row]) -> list[Row]:
    """The rows that have a model."""
    return [row for row in rows if row["correct"]]


def reaches(goal: Goal, rows: Sequence[Row]) -> bool:
    """Whether the trainings of a variant reach the goal: all of them together."""
    return all(row["correct"] for row in rows) and goal.is_reached(rows)


def by_variant(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each variant, seed by seed."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    return found


def table(suite: str, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells. A variant that misses the goal gets its seconds, and no ratio."""
    goal, variants = SUITES[suite].goal, by_variant(rows)
    cells = []
    for variant, own in variants.items():
        there, is_reached = right(own), reaches(goal, own)
        ratios = [ratio(variants, variant, name) if is_reached else None for name in ("seconds", "cpu_seconds")]
        clean, robust, seconds = (spread([row[name] for row in there]) for name in ("clean", "autoattack", "seconds"))
        said = "reached" if is_reached else "missed" if there == own else f"missed: {len(own) - len(there)} failed"
        cells.append([variant, str(len(own)), clean, robust, said, seconds, *map(ratio_text, ratios)])
    return COLUMNS, cells


def ratio(variants: dict[str, list[Row]], variant: str, name: str) -> dict[str, float] | None:
    """How many times as long the published way took as `variant`, turn by turn; None where they share no turn."""
    published = {row["seed"]: row[name] for row in right(variants.get("published", ()))}
    mine = {row["seed"]: row[name] for row in right(variants[variant])}
    turns = [seed for seed in mine if seed in published]
    return ratio_of([published[seed] for seed in turns], [mine[seed] for seed in turns]) if turns else None


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation; `-` of none."""
    if not values:
        return "-"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def caption(suite: str, rows: Sequence[Row]) -> str:
    """What was raced for, on how many images, of which at least one row has a model."""
    goal, first = SUITES[suite].goal, right(rows)[0]
    what = f"net {first['model']}, data {first['dataset']}, {first['num_images']:,} test images, "
    what += f"{first['num_autoattack']:,} of them for AutoAttack; "
    return f"{what}goal: clean {goal.clean:g} %, AutoAttack {goal.autoattack:g} % ({goal.source})"


def as_markdown(rows: Sequence[Row]) -> str:
    """Every race with its whole ladder and its picture; empty for no rows."""
    parts = []
    for suite, name, own in _races(rows):
        parts += [f"**{suite}**\n", _race(suite, own)]
        parts.append(f"![seconds to the model of each](../docs/images/{name})\n")
    return "\n".join(parts)


def ends_as_markdown(suite: str, rows: Sequence[Row]) -> str:
    """The ends of the race with the most rows, without the changes between them; empty for no rows."""
    (race, *_) = races_of(suite, rows) or [[]]
    own = [row for row in race if row["variant"] in ENDS]
    return _race(suite, own) if right(own) else ""


def _race(suite: str, rows: Sequence[Row]) -> str:
    said = warned(rows, lambda row: row["variant"])
    where = f"{caption(suite, rows)}; {place(*rows, commit=commits(right(rows)))}."
    return f"{markdown(*table(suite, rows))}\n{where}{f' {said}' if said else ''}\n"


def _races(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """The races with a model: the suite, the name of the picture, and the rows."""
    for suite in SUITES:
        for number, own in enumerate(races_of(suite, rows), 1):
            if right(own):
                yield suite, f"speedrun-{suite}{f'-{number}' if number > 1 else ''}.png", own


def headline(suite: str, rows: Sequence[Row]) -> str:
    """In a line: what the fastest variant that reaches the goal takes."""
    goal, variants = SUITES[suite].goal, by_variant(rows)
    seconds = {name: mean(row["seconds"] for row in own) for name, own in variants.items() if reaches(goal, own)}
    if not seconds:
        return f"{suite}: no variant reaches the goal"
    best = min(seconds, key=lambda name: seconds[name])
    text = ratio_text(ratio(variants, best, "seconds"))
    return f"{suite}: {best} reaches the goal in {seconds[best]:.1f} s, {text} times as fast as published"


def pictures(folder: Path, rows: Sequence[Row]) -> None:
    """Draw every race."""
    for suite, name, own in _races(rows):
        picture(folder / name, suite, own)


def picture(path: Path, suite: str, rows: Sequence[Row]) -> None:
    """Bars of seconds to a model, with what it reaches and how many times as fast that is, as a PNG. A variant that
    misses the goal is grey."""
    goal, variants = SUITES[suite].goal, by_variant(rows)
    variants = {variant: own for variant, own in variants.items() if right(own)}
    with figure_of(path, 1, 1, (9, 0.5 * len(variants) + 1.5)) as (_, ((axes,),)):
        for i, (variant, own) in enumerate(variants.items()):
            is_reached, than_published, own = reaches(goal, own), ratio(variants, variant, "seconds"), right(own)
            clean, robust, seconds = (spread([row[name] for row in own]) for name in ("clean", "autoattack", "seconds"))
            axes.barh(i, mean(row["seconds"] for row in own), color=COLOURS[0] if is_reached else "lightgrey")
            for row in own:
                axes.plot(row["seconds"], i, "k|", markersize=8)
            compared = "" if is_reached else " · misses the goal"
            if is_reached and than_published and variant != "published":
                compared = f" · {ratio_text(than_published)} times as fast"
            longest = max(row["seconds"] for row in own)
            axes.text(
                longest, i, f"  {seconds} s{compared}\n  clean {clean}, AutoAttack {robust} %", va="center", fontsize=8
            )
        axes.set_yticks(range(len(variants)), list(variants), fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.55 * max(row["seconds"] for row in right(rows)))
        axes.set(
            xlabel="seconds from the start of the process to the model, and times published (least-most)",
            title=f"{suite}: to {goal.clean:.1f} % clean and {goal.autoattack:.1f} % AutoAttack accuracy",
        )
        axes.spines[["top", "right"]].set_visible(False)
