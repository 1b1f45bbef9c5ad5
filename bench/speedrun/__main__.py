"""Time to robustness: seconds from the start of a process to a saved model that reaches a standard recipe's accuracies.

    python -m bench.speedrun --suite digits --seeds 3
    python -m bench.speedrun --suite digits --variants published default fast --seeds 1
    python -m bench.speedrun --suite digits --ladder

`published` is the standard recipe eagerly in float32, `default` the same as it comes, `fast` the recipe made for speed;
--ladder has every change between them. They train in turns, seed by seed, each in a fresh process that finds nothing
compiled; then all are attacked. What all seeds of a variant reach together counts. What --runs holds is not trained
again. The table has the rows of the machine and the data set of the last one.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.common import command
from bench.common.processes import OutOfTime
from bench.common.rows import RESULTS, has_row, place, read_rows, write_row
from bench.speedrun import report as speedrun_report
from bench.speedrun.one_run import RaceTraining, failed_row, measured_row, train, warm_up
from bench.speedrun.suites import SUITES
from fastarat.common.console import notice, print_table, stdout
from fastarat.common.durations import duration
from fastarat.common.errors import UserError
from fastarat.data.open import open_dataset


@command.program("bench.speedrun")
def main(args: list[str] | None) -> int:
    """Race, write rows and print the table: 0, or 1 if not all is measured: one failed, or the budget was over."""
    arguments = _arguments(args)
    trainings = [
        RaceTraining(
            arguments.suite, variant, SUITES[arguments.suite].rungs[variant], seed, arguments.data, arguments.runs
        )
        for seed in range(arguments.seeds)
        for variant in arguments.variants
    ]
    for training in trainings:
        training.check()  # before anything is trained
    left = [training for training in trainings if not _has_row(arguments, training)]
    untrained = [training for training in left if not training.is_trained]
    if untrained:
        warm_up(arguments.runs)
    end = math.inf if arguments.budget is None else time.monotonic() + arguments.budget
    try:
        for training in _told(untrained, "training", end):
            _train(arguments, training)
        # Attacks, which nobody times, come after all turns: what is compared runs close together.
        for training in _told([training for training in left if training.is_trained], "attacking", end):
            _measure(arguments, training)
    except OutOfTime:
        notice("the budget is over; the same command goes on from there")
    rows = speedrun_report.race_here(arguments.suite, list(read_rows(arguments.rows)))
    if right := speedrun_report.right(rows):
        said = f"{speedrun_report.caption(arguments.suite, rows)}; {place(*right)}"
        print_table(said, *speedrun_report.table(arguments.suite, rows))
        stdout.print(speedrun_report.headline(arguments.suite, rows), markup=False)
    return 0 if all(_has_row(arguments, training) for training in trainings) else 1


def _told(trainings: Sequence[RaceTraining], doing: str, end: float) -> Iterator[RaceTraining]:
    """The trainings one by one, each said with the time left, which the turns so far tell. Raises `OutOfTime` where one
    would begin after `end`, of `time.monotonic()`."""
    started = time.monotonic()
    for number, training in enumerate(trainings):
        now = time.monotonic()
        if now > end:
            raise OutOfTime
        left = f", about {duration((now - started) / number * (len(trainings) - number))} left" if number else ""
        notice(f"{doing} {number + 1} of {len(trainings)}: {training.name}{left}")
        yield training


def _train(arguments: argparse.Namespace, training: RaceTraining) -> None:
    """Train; where that gives no model, write a row that says so."""
    ending = train(training)
    if not training.is_trained:
        error = ending.last_line or f"ended with code {ending.code}"
        notice(f"{training.name} failed: {error}")
        write_row(arguments.rows, failed_row(training, error))


def _measure(arguments: argparse.Namespace, training: RaceTraining) -> None:
    """Attack what was trained, and write the row."""
    row = measured_row(training, arguments.num_images, arguments.num_autoattack)
    write_row(arguments.rows, row)
    reached = f"clean {row['clean']:.1f} %, AutoAttack {row['autoattack']:.1f} %"
    notice(f"{training.name}: {row['seconds']:.1f} s, {reached}")


def _has_row(arguments: argparse.Namespace, training: RaceTraining) -> bool:
    """Whether the training is there, and measured on as many images as are wanted now, or more."""
    if not training.is_trained:
        return False
    fields = {"suite": training.suite, "variant": training.variant, "seed": training.seed, **training.times}
    wanted = {name: getattr(arguments, name) for name in ("num_images", "num_autoattack")}
    return has_row(read_rows(arguments.rows), fields, at_least=wanted, config=training.config)


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser("bench.speedrun", __doc__)
    parser.add_argument("--suite", choices=SUITES, default="digits")
    parser.add_argument(
        "--variants", nargs="+", metavar="VARIANT", help="of the suite's; default published default fast"
    )
    parser.add_argument("--ladder", action="store_true", help="all of the suite's variants")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant; default 3")
    parser.add_argument("--num-images", type=int, help="test images for clean accuracy; default the suite's")
    parser.add_argument("--num-autoattack", type=int, help="of them for AutoAttack; default the suite's")
    parser.add_argument("--runs", type=Path, default=Path("runs/speedrun"), help="where trainings go")
    rows = "where rows go (bench/results/speedrun.jsonl)"
    command.flags(
        parser, data="data set instead of the suite's own", budget="begin no training and no attack later", rows=rows
    )
    arguments = parser.parse_args(args)
    suite = SUITES[arguments.suite]
    if arguments.ladder and arguments.variants:
        raise UserError("--ladder has all variants: leave --variants out")
    arguments.variants = arguments.variants or (tuple(suite.rungs) if arguments.ladder else suite.ends)
    command.check_known(f"variant of suite {arguments.suite}", arguments.variants, suite.rungs)
    command.check_positive(arguments, "seeds", "num_images", "num_autoattack", "budget")
    arguments.rows = arguments.rows or RESULTS / "speedrun.jsonl"
    arguments.data = arguments.data or suite.data
    command.check_writable(arguments.rows)
    arguments.runs = command.folder("--runs", arguments.runs)
    # What has to be decoded once is so before anything is timed.
    most = len(open_dataset(arguments.data).test.labels)
    command.limit_images(arguments, num_images=suite.num_images, num_autoattack=suite.num_autoattack, most=most)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
