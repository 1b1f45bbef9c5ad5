"""Robust accuracy: train methods alike over seeds, attack the deployed weights, write rows.

    python -m bench.robustness --suite digits --seeds 3
    python -m bench.robustness --suite cifar10-tiny --methods at arat --budget 3600
    srun --gpus-per-task=1 python -m bench.robustness --suite ablation   # processes, each with a GPU of its own

Clean accuracy, PGD-20 and the standard AutoAttack. Each training is a run directory under --runs. Trainings and attacks
that were stopped go on; what has its row is skipped.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bench.common import command
from bench.common.rows import RESULTS, has_row, read_rows, write_row
from bench.common.shares import share, share_of
from bench.robustness import report as robustness_report
from bench.robustness.row import is_finished, measure
from bench.robustness.suites import SUITES, Suite, SuiteTraining, entries, shared
from fastarat.common.console import notice, print_table, stdout
from fastarat.common.errors import Interrupted, UserError
from fastarat.common.signals import number_of
from fastarat.config.method import ARRESTConfig
from fastarat.data.open import open_dataset
from fastarat.runs.run import Run
from fastarat.training.reporting import learning_curves

AGAIN_S = 5.0
"""between alarms when the budget is over"""


@command.program("bench.robustness")
def main(args: list[str] | None) -> int:
    """Run a suite and print its table; 1 if the budget was over, 128 and its number after a signal."""
    arguments = _arguments(args)
    suite: Suite = SUITES[arguments.suite]
    every = entries(
        suite,
        arguments.methods,
        arguments.data,
        num_seeds=arguments.seeds,
        runs=arguments.runs,
        fidelity=arguments.fidelity,
    )
    wanted = shared(list(every), *arguments.share)
    if done := sum(_has_row(arguments, entry) for entry in wanted):
        notice(f"{done} of {len(wanted)} rows are in {arguments.rows} already; another --rows begins anew")
    try:
        with _within(arguments.budget):
            for number, entry in enumerate(wanted, 1):
                if not _has_row(arguments, entry) or _is_needed(arguments, entry, wanted):
                    notice(f"{arguments.suite}, {number} of {len(wanted)}: {entry.name}")
                    row = measure(
                        arguments.suite,
                        entry,
                        arguments.num_images,
                        num_autoattack=arguments.num_autoattack,
                        analysed=suite.analysed,
                        search=suite.search,
                    )
                    write_row(arguments.rows, row)
    except _Stopped as stopped:
        done = sum(_has_row(arguments, entry) for entry in wanted)
        notice(f"stopped with {done} of {len(wanted)} rows; the same command goes on from there")
        return stopped.code
    finally:
        _report(arguments, wanted)
    return 0


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser("bench.robustness", __doc__)
    parser.add_argument("--suite", choices=SUITES, default="digits")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="those of the suite's; default all")
    parser.add_argument("--seeds", type=int, help="trainings per method; default the suite's")
    parser.add_argument("--fidelity", choices=("paper", "published-code"), default="paper", help="of AT and AR-AT")
    parser.add_argument("--num-images", type=int, help="test images for clean accuracy and PGD-20; default the suite's")
    parser.add_argument("--num-autoattack", type=int, help="of them for AutoAttack, 0 for none; default the suite's")
    parser.add_argument("--runs", type=Path, default=Path("runs/robustness"), help="where trainings go")
    helped = "K/N: the K-th of N processes, which share the trainings; torchrun, srun and mpirun give it by themselves"
    parser.add_argument("--share", type=share, metavar="K/N", help=helped)
    budget = "stop in time; the next call goes on"
    rows = "where rows go (bench/results/robustness.jsonl)"
    command.flags(parser, data="data set instead of the suite's own", budget=budget, rows=rows)
    arguments = parser.parse_args(args)
    suite = SUITES[arguments.suite]
    arguments.share = share_of(arguments.share)
    arguments.rows = arguments.rows or RESULTS / "robustness.jsonl"
    arguments.methods = tuple(arguments.methods or suite.methods)
    command.check_known(f"method of suite {arguments.suite}", arguments.methods, suite.methods)
    if "arrest" in arguments.methods and "standard" not in arguments.methods:
        raise UserError("ARREST starts from the net of 'standard': name that among --methods too")
    command.check_positive(arguments, "seeds", "num_images", "budget")
    if arguments.num_autoattack is not None and arguments.num_autoattack < 0:
        raise UserError(f"--num-autoattack is {arguments.num_autoattack}: give 0 or more")
    arguments.seeds = suite.seeds if arguments.seeds is None else arguments.seeds
    command.check_writable(arguments.rows)
    command.folder("--runs", arguments.runs)
    most = len(open_dataset(arguments.data or suite.data).test.labels)
    command.limit_images(arguments, num_images=suite.num_images, num_autoattack=suite.num_autoattack, most=most)
    return arguments


class _Stopped(Exception):
    """The budget is over, or a signal came; `code` is the exit code."""

    def __init__(self, code: int):
        self.code = code


@contextmanager
def _within(budget: float | None) -> Iterator[None]:
    """Send Ctrl-C after `budget` seconds: a training then writes a checkpoint, an attack has its state.

    It comes again, since a training takes the first for itself, and comes to its end if it has done its last step.
    Raises `_Stopped`, whatever stopped it.
    """
    is_over = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_over
        if not is_over:
            notice(f"the budget of {budget:g} s is over")
        is_over = True
        signal.raise_signal(signal.SIGINT)

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, budget or 0, AGAIN_S)
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        raise _Stopped(1 if is_over else 128 + number_of(error)) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def _has_row(arguments: argparse.Namespace, entry: SuiteTraining) -> bool:
    """Whether the training is measured on as many images as are wanted now, or more, in the wanted format or fp32."""
    formats = ("fp32", SUITES[arguments.suite].search)
    rows = [row for row in read_rows(arguments.rows) if row.get("search", "fp32") in formats]
    wanted = {name: getattr(arguments, name) for name in ("num_images", "num_autoattack")}
    return has_row(rows, {"suite": arguments.suite}, at_least=wanted, config=entry.config)


def _is_needed(arguments: argparse.Namespace, entry: SuiteTraining, wanted: list[SuiteTraining]) -> bool:
    """Whether a training that has not begun starts from this one, of which there is no more than its row."""
    return not is_finished(entry.out, entry.config) and any(
        isinstance(other.config.method, ARRESTConfig)
        and other.config.method.teacher == str(entry.out)
        and not (Run(other.out).has_checkpoint() or _has_row(arguments, other))
        for other in wanted
    )


def _report(arguments: argparse.Namespace, wanted: list[SuiteTraining]) -> None:
    """Print the suite's table; draw where the methods stand, and the learning curves of the first seed."""
    rows = robustness_report.rows_of(arguments.suite, read_rows(arguments.rows))
    if any(row["correct"] for row in rows):
        print_table(f"suite {arguments.suite}", *robustness_report.table(rows))
        picture = arguments.runs / f"{arguments.suite}.png"
        robustness_report.picture(picture, rows)
        notice(f"accuracy and robustness: {picture}")
        stdout.print(robustness_report.headline(rows), markup=False)
    if said := robustness_report.doubts(rows):
        notice(said)
    lines = {entry.name: Run(entry.out).metrics() for entry in wanted if entry.config.seed == 0}
    lines = {name: found for name, found in lines.items() if found}
    if lines:
        curves = arguments.runs / f"{arguments.suite}-curves.png"
        learning_curves(curves, lines, arguments.suite)
        notice(f"learning curves: {curves}")


if __name__ == "__main__":
    sys.exit(main())
