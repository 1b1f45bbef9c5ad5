"""`fastarat compare RUN RUN…`: runs as a table, and which of their differences are beyond noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastarat.commands.parsing import Printed, named_device, parse, require_positive
from fastarat.common.console import command, notice, print_json, print_table, stdout
from fastarat.common.durations import duration
from fastarat.common.errors import UserError

if TYPE_CHECKING:
    from fastarat.evaluation.outcomes import Outcomes
    from fastarat.evaluation.significance import Comparison, Difference
    from fastarat.reports.facts import Facts

NUM_IMAGES = 1000
"""of an evaluation that has to be made, where none is asked for"""


@dataclass(frozen=True)
class CompareArguments(Printed):
    """Compare runs over the same test images, and say which differences are beyond noise.

    Takes the strongest evaluation that `fastarat eval` or a report has kept in all of them; where there is none, each
    is evaluated by PGD-20 first. The test of a pair is McNemar's, widened for how far trainings with other seeds lie
    apart; several tests are corrected for by Holm. Runs that differ by their seeds alone stand together: give several
    seeds of each, and smaller differences are found.
    For example: fastarat compare runs/digits-arat runs/digits-at
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN RUN [RUN ...]")]
    """runs' directories"""
    num_images: int | None = None
    """take evaluations of as many test images alone, and make one where none is kept; default what is kept of any
    number, else 1000"""
    data: str | None = None
    """where the images lie now; default where each run found them"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


def run(args: list[str]) -> int:
    """Compare, and print tables and a sentence for each pair, or JSON."""
    arguments = parse(CompareArguments, args, "fastarat compare")
    if len(arguments.runs) < 2:
        raise UserError("give two runs or more: fastarat compare RUN RUN")
    require_positive(arguments, "num_images")
    from fastarat.evaluation.significance import compare
    from fastarat.reports.facts import facts_of, names_of, settings_and_seeds, shared_outcomes

    names = names_of(list(arguments.runs))
    runs = [facts_of(path, name) for path, name in zip(arguments.runs, names, strict=True)]
    found = shared_outcomes([_with_images(run, arguments.num_images) for run in runs]) or _evaluated(arguments, runs)
    for (first, mine), (second, theirs) in combinations(found.items(), 2):
        if mine.weights == theirs.weights:
            notice(f"{first} and {second} have the same weights: they are one training")
    if not all(replace(run, outcomes=[found[run.name]]).own_outcomes for run in runs):
        notice("the runs share no evaluation of their own threat model on their own data: this is another")
    for run in runs:
        if not run.is_finished:
            goes_on = command("train", "--resume", run.path)
            notice(f"{run.name} has not finished (epochs: {_epochs(run)}); {goes_on} goes on with it")
    comparison = compare(found, settings_and_seeds(runs))
    for name in comparison.left_out(found):
        notice(f"{name} has the settings and the seed of another run: it is left out of the tests")
    if arguments.json:
        print_json(_as_json(runs, found, comparison))
    else:
        _print(runs, found, comparison)
    return 0


def _with_images(run: "Facts", num_images: int | None) -> "Facts":
    """The run with its evaluations of so many images alone, if a number is given."""
    if num_images is None:
        return run
    wanted = min(num_images, run.num_test_images or num_images)
    return replace(run, outcomes=[outcomes for outcomes in run.outcomes if len(outcomes.labels) == wanted])


def _evaluated(arguments: CompareArguments, runs: "Sequence[Facts]") -> "dict[str, Outcomes]":
    """Each run by PGD-20 on the same test images. Raises `UserError` if they cannot be compared so."""
    from fastarat.evaluation.of_run import evaluate_run, threat_of

    if arguments.data is None:
        _check_data(runs)
    threats = {run.name: threat_of(run.path) for run in runs}
    if len({(threat.norm, threat.eps) for threat in threats.values()}) > 1:
        said = ", ".join(f"{name} {threat.norm} {255 * threat.eps:g}/255" for name, threat in threats.items())
        raise UserError(
            f"the runs were made for different threat models ({said}): evaluate each by 'fastarat eval RUN --norm NORM "
            "--eps-255 EPS' with the same two, then compare them"
        )
    num_images = arguments.num_images or NUM_IMAGES
    notice(f"no such evaluation is kept in all of them: PGD-20 on up to {num_images:,} test images of each")
    device = named_device(arguments.device)
    found = {
        run.name: evaluate_run(run.path, threats[run.name], num_images, device, arguments.data).outcomes for run in runs
    }
    if len({outcomes.key for outcomes in found.values()}) > 1:
        raise UserError("the runs were made for different test images, which cannot be compared image by image")
    return found


def _check_data(runs: "Sequence[Facts]") -> None:
    """Raise `UserError` for runs on data sets of other names and other images."""
    if len({run.data for run in runs}) > 1 and len({run.data_fingerprint for run in runs}) > 1:
        said = ", ".join(f"{run.name} is on {run.data}" for run in runs)
        raise UserError(
            f"{said}: they cannot be compared image by image; if each can take the images of one set, give --data SET"
        )


def _as_json(runs: "Sequence[Facts]", found: "dict[str, Outcomes]", comparison: "Comparison") -> dict[str, Any]:
    from fastarat.evaluation.significance import LEVEL

    first = next(iter(found.values()))
    return {
        "attack": {"name": first.name, **first.attack},
        "data": first.data,
        "num_images": len(first.labels),
        "runs": {run.name: {**_of_run(found[run.name]), "is_finished": run.is_finished} for run in runs},
        "test": comparison.test,
        "level": LEVEL,
        "spread_points": {kind: round(points, 3) for kind, points in comparison.spread.items()},
        "trainings": comparison.trainings,
        "num_repeats": comparison.num_repeats,
        "differences": [
            {**test._asdict(), "points": round(test.points, 3), "is_beyond_noise": test.is_beyond_noise}
            for test in comparison.differences
        ],
    }


def _of_run(outcomes: "Outcomes") -> dict[str, Any]:
    flags = {"clean": outcomes.flags["clean"], "robust": outcomes.robust}
    percents = {kind: round(100 * float(of.mean()), 3) for kind, of in flags.items()}
    return {**percents, "not_searched": outcomes.num_unsearched, "warnings": list(outcomes.warnings)}


def _print(runs: "Sequence[Facts]", found: "dict[str, Outcomes]", comparison: "Comparison") -> None:
    from fastarat.evaluation.accuracies import Accuracy

    first = next(iter(found.values()))
    rows = []
    for run in runs:
        cells, outcomes = [], found[run.name]
        for flags in (outcomes.flags["clean"], outcomes.robust):
            accuracy = Accuracy((int(flags.sum()),), (len(flags),))
            low, high = accuracy.interval
            cells.append(f"{accuracy.percent:.2f} ({low:.1f}-{high:.1f})")
        took = "-" if run.seconds is None else duration(run.seconds)
        rows.append([run.name, run.config.method.name, str(run.config.seed), _epochs(run), *cells, took])
    columns = ["run", "method", "seed", "epochs", "clean %", f"{first.name} %", "training"]
    print_table(comparison.evaluation, columns, rows)
    for names in comparison.trainings:
        if len(names) > 1:
            stdout.print(f"{' + '.join(names)} differ by their seeds alone: they stand together, and have no test")
    for test in comparison.differences:
        unsearched = {name: n for name in (*test.first, *test.second) if (n := found[name].num_unsearched)}
        stdout.print(sentence(test, unsearched if test.kind == "robust" else {}))
    for name, outcomes in found.items():
        for warning in outcomes.warnings:
            stdout.print(f"warning: {name}: {warning}")
    if comparison.differences:
        stdout.print(f"by {comparison.test}")
    stdout.print("in brackets: 95 % intervals over the choice of images")


def _epochs(run: "Facts") -> str:
    """Those that it has trained, and of how many if it has not finished."""
    done, asked = run.epochs[-1]["epoch"] if run.epochs else 0, run.config.epochs
    return str(asked) if run.problem or done >= asked else f"{done} of {asked}"


def sentence(test: "Difference", unsearched: dict[str, int]) -> str:
    """What a test says; `unsearched`: in which of its runs how many robust images no attack could search."""
    alone = [f"{round(number, 1):g}" for number in (test.only_first, test.only_second)]
    numbers = f"{alone[0]} images right in the first alone, {alone[1]} in the second, p {test.corrected:.2g}"
    for name, number in unsearched.items():
        numbers += f"; {number} robust images of {name} are so without evidence, since no attack could search them"
    first, second = (" + ".join(names) for names in (test.first, test.second))
    if not test.is_beyond_noise:
        seen = f"no difference beyond noise is seen on {test.num_images:,} images"
        return f"{test.kind}: {first} and {second}: {seen} ({numbers})"
    ahead, behind = (first, second) if test.points > 0 else (second, first)
    return f"{test.kind}: {ahead} is ahead of {behind} by {abs(test.points):.1f} points, beyond noise ({numbers})"
