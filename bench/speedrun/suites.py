"""What a speedrun is for: a goal that a standard recipe reaches, and the ways to it.

A rung is a recipe with flags, as `fastarat train` takes them. Each of a suite has one change more than the one before,
from the published way (eager, in float32) to the recipe that was made for speed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from bench.common.rows import RESULTS, Row, read_rows
from fastarat.reports.published import PAPER

Rung = tuple[str, ...]
"""a recipe's name and flags"""

PUBLISHED = ("--dtype", "fp32", "--compile", "eager", "--kernels", "pytorch")
ENDS = ("published", "default", "fast")
"""what is compared where no whole ladder is asked for"""
MEASURES = ("clean", "autoattack")
ROUNDING = 0.0015
"""percent: rows and goals have three decimals, so a mean, its standard error and a goal are off by up to 0.0005 each"""


@dataclass(frozen=True)
class Goal:
    """Accuracies in percent that count as reached."""

    clean: float
    autoattack: float
    source: str
    """whose they are"""

    def is_reached(self, rows: Sequence[Row]) -> bool:
        """Whether the mean of these trainings lies at both accuracies or above, or below by no more than its standard
        error; that of a single training is not known, and counts as 0. A tie is no miss by how it was rounded."""
        return bool(rows) and all(
            mean(row[name] for row in rows) + standard_error([row[name] for row in rows])
            >= getattr(self, name) - ROUNDING
            for name in MEASURES
        )


def goal_of(recipe: str, data: str, rows: Iterable[Row], *, until_then: Goal) -> Goal:
    """What the standard recipe reaches by its rows that have AutoAttack on all images of `data`, of each seed the last
    one; `until_then` while there are none."""
    found = {
        row["seed"]: row
        for row in rows
        if (row["config"].get("recipe"), row["dataset"], row.get("fidelity")) == (recipe, data, "paper")
        and row["correct"]
        and row.get("num_autoattack") == row["num_images"]
    }
    if not found:
        return until_then
    clean, autoattack = (round(mean(row[name] for row in found.values()), 3) for name in MEASURES)
    seeds = f"{len(found)} seed{'s' if len(found) > 1 else ''}"
    return Goal(clean, autoattack, f"{recipe}, {seeds}, in bench/results/robustness.jsonl")


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of these values."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


@dataclass(frozen=True)
class RaceSuite:
    """A race."""

    data: str
    goal: Goal
    rungs: Mapping[str, Rung]
    """by their names, from the slowest"""
    num_images: int | None
    """test images of the clean accuracy; None: all"""
    num_autoattack: int | None
    """how many of them, from the first on, AutoAttack attacks; None: all"""

    @property
    def ends(self) -> tuple[str, ...]:
        """The rungs that are raced where no others are asked for."""
        return tuple(name for name in self.rungs if name in ENDS)


def ladder(standard: str, fast: str | None = None, changes: Mapping[str, Rung] | None = None) -> dict[str, Rung]:
    """`published` and `default` of the standard recipe, this with one of the `changes` (flags by name) after the other,
    and the recipe `fast`, which is all of them; None: there is none yet."""
    rungs: dict[str, Rung] = {"published": (standard, *PUBLISHED), "default": (standard,)}
    flags: tuple[str, ...] = ()
    for name, more in (changes or {}).items():
        flags += more
        rungs[f"+ {name}"] = (standard, *flags)
    return {**rungs, "fast": (fast,)} if fast else rungs


SUITES = {
    "digits": RaceSuite(
        data="digits",
        goal=Goal(99.352, 76.833, "digits-at over three seeds, in bench/results/robustness.jsonl"),
        rungs=ladder(
            "digits-at",
            "digits-at-fast",
            {
                "a rate up to 0.8 and down": ("--schedule.name", "cyclic", "--optimizer.learning-rate", "0.8"),
                "2 attack steps for 10": ("--attack.steps", "2", "--attack.step-255", "34"),
                "30 epochs for 40": ("--epochs", "30"),
            },
        ),
        num_images=None,
        num_autoattack=200,
    ),
    "cifar10-tiny": RaceSuite(
        data="cifar10-jpeg",
        goal=Goal(54.85, 29.4, "cifar10-tiny-at, one seed, in bench/results/robustness.jsonl"),
        rungs=ladder(
            "cifar10-tiny-at",
            "cifar10-tiny-at-fast",
            {
                "4 epochs for 12": ("--epochs", "4"),
                "Muon, a rate up and down": (
                    *("--optimizer.name", "muon", "--optimizer.muon-factor", "0.2"),
                    *("--optimizer.learning-rate", "0.2", "--schedule.name", "cyclic"),
                ),
                "no crops": ("--augment.crop-padding", "0"),
                "1 attack step for 3": (
                    *("--attack.steps", "1", "--attack.step-255", "11"),
                    *("--attack.eps-255", "9", "--evaluation.eps-255", "8"),
                ),
            },
        ),
        num_images=2000,
        num_autoattack=500,
    ),
    "digits-arat": RaceSuite(
        data="digits",
        goal=Goal(99.259, 76.667, "digits-arat over three seeds, in bench/results/robustness.jsonl"),
        rungs=ladder("digits-arat", "digits-arat-fast"),
        num_images=None,
        num_autoattack=200,
    ),
    "cifar10-tiny-arat": RaceSuite(
        data="cifar10-jpeg",
        goal=Goal(58.75, 23.2, "cifar10-tiny-arat, one seed, in bench/results/robustness.jsonl"),
        rungs=ladder("cifar10-tiny-arat", "cifar10-tiny-arat-fast"),
        num_images=2000,
        num_autoattack=500,
    ),
    "cifar10-resnet18": RaceSuite(
        data="cifar10",
        goal=goal_of(
            "cifar10-resnet18-at",
            "cifar10",
            read_rows(RESULTS / "robustness.jsonl"),
            until_then=Goal(
                *PAPER["resnet18"]["at"],
                "the AR-AT paper's AT, by its code's own evaluation, which is weaker than the standard AutoAttack: it "
                "holds until cifar10-resnet18-at has rows",
            ),
        ),
        rungs=ladder(
            "cifar10-resnet18-at",
            "cifar10-resnet18-at-fast",
            {
                "15 epochs for 100, a rate up and down": ("--epochs", "15", "--schedule.name", "cyclic"),
                "2 attack steps for 10": ("--attack.steps", "2", "--attack.step-255", "6"),
                "Muon": (
                    *("--optimizer.name", "muon", "--optimizer.muon-factor", "0.2"),
                    *("--optimizer.learning-rate", "0.2"),
                ),
                "crops of 2 pixels": ("--augment.crop-padding", "2"),
            },
        ),
        num_images=None,
        num_autoattack=None,
    ),
}
