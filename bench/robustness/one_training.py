"""Train by a recipe, or go on with it, without the command line's parser: then measure the result, or a profile.

    python -m bench.robustness.one_training cifar10-resnet18-arat --data cifar10 --out runs/paper \
        --suite paper-resnet18
    python -m bench.robustness.one_training cifar10-resnet18-arat --out runs/profile --profile 5

A row of --suite holds what PGD-20 leaves of all test images, and AutoAttack of --num-autoattack of them. A profile
needs no data: its images are random then.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.common import command
from bench.common.inputs import method_of, random_images
from bench.common.rows import RESULTS, Row, base_row, has, rows_from_here, write_row
from bench.robustness.row import measure
from bench.robustness.suites import SUITES, SuiteTraining
from fastarat.common.console import stdout
from fastarat.common.errors import Interrupted, UserError, WorkError
from fastarat.common.signals import number_of
from fastarat.config import Config
from fastarat.config.recipes import recipe
from fastarat.data.formats import prepared
from fastarat.data.formats.find import find
from fastarat.data.open import open_dataset
from fastarat.training.train import train

PROFILED_STEPS = 20
"""of the epoch that a profile is taken in"""


@command.program("bench.robustness.one_training")
def main(args: list[str] | None) -> int:
    """Train and write a row, or a profile; after a signal 128 and its number."""
    arguments = _arguments(args)
    # A training writes a checkpoint by itself; an attack's state is there whenever it ends.
    goes_on = "the same command goes on from there"
    try:
        if arguments.profile:
            _profile(arguments)
        else:
            _measure(arguments)
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; {goes_on}", stopped.number) from stopped
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped in the evaluation; {goes_on}", number_of(error)) from error
    return 0


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser("bench.robustness.one_training", __doc__)
    parser.add_argument("recipe", help="as 'fastarat recipes' lists them")
    parser.add_argument("--out", type=Path, required=True, help="the run's directory, or that of profiles")
    parser.add_argument("--suite", help="of the row")
    parser.add_argument("--num-autoattack", type=int, default=0, help="test images for AutoAttack; default none")
    parser.add_argument("--profile", type=int, metavar="STEPS", help="profile this many steps instead")
    rows, smoke = "where the row goes (bench/results/robustness.jsonl)", "one epoch of few images: does everything run?"
    command.flags(parser, "device", data="data set instead of the recipe's own", rows=rows, smoke=smoke)
    arguments = command.parsed(parser, args, "trains there")
    arguments.rows = arguments.rows or RESULTS / "robustness.jsonl"
    arguments.num_images = 60 if arguments.smoke else None
    command.check_positive(arguments, "profile")
    if not arguments.profile:
        if arguments.suite is None:
            raise UserError("give --suite NAME for the row, or --profile STEPS")
        command.check_writable(arguments.rows)
    if arguments.data is not None:
        find(arguments.data)
    arguments.config = _config(arguments).checked()
    return arguments


def _config(arguments: argparse.Namespace) -> Config:
    config = recipe(arguments.recipe)
    config = replace(config, data=arguments.data or config.data, device=arguments.device)
    if arguments.smoke:
        evaluation = replace(config.evaluation, num_images=20, steps=1)
        attack = replace(config.attack, steps=1)
        config = replace(config, epochs=1, num_train_images=256, attack=attack, evaluation=evaluation)
    return config


def _profile(arguments: argparse.Namespace) -> None:
    config = arguments.config
    few = config.num_train_images or PROFILED_STEPS * config.batch
    evaluation = replace(config.evaluation, num_images=1)
    config = replace(config, epochs=1, num_train_images=few, num_validation_images=0, evaluation=evaluation)
    if arguments.data is None and config.data != "digits":
        images = arguments.out.with_name(f"random-{config.data}")
        if not images.exists():
            prepared.write(random_images(config.data, few), images, "random")
        config = replace(config, data=str(images))
    # A run is profiled once: each has a directory of its own.
    out = arguments.out / f"{datetime.now():%Y%m%d-%H%M%S}"
    train(config, out, profile=arguments.profile)
    written = out / "profile" / "profile.json"
    if not written.exists():
        raise WorkError("no profile: torch.profiler saw nothing run on the device (a GPU's counters may be locked)")
    profile = json.loads(written.read_text())
    stdout.print("{recipe}: {ms_a_step_unrecorded:.2f} ms a step, {launches_a_step:,.0f} launches".format(**profile))


def _measure(arguments: argparse.Namespace) -> None:
    config = arguments.config
    row = _known_row(arguments)
    if row is None:
        entry = SuiteTraining(method_of(config.recipe), config, arguments.out)
        search = SUITES[arguments.suite].search if arguments.suite in SUITES else "fp32"
        row = measure(
            arguments.suite, entry, arguments.num_images, num_autoattack=arguments.num_autoattack, search=search
        )
        # Where the data lay on this machine is of no use elsewhere.
        row["config"]["data"] = row["dataset"]
        write_row(arguments.rows, row)
    stdout.print(headline([row]))


def _known_row(arguments: argparse.Namespace) -> Row | None:
    """The row by this commit of what is asked for, if there is one."""
    data = open_dataset(arguments.config.data)
    num_images = min(arguments.num_images or len(data.test.labels), len(data.test.labels))
    fields = {"suite": arguments.suite, "num_images": num_images}
    attacked = {"num_autoattack": min(arguments.num_autoattack, num_images)}
    config = replace(arguments.config, data=data.name)  # a row names its data set, not where that lay
    known = rows_from_here(
        "robustness", arguments.rows, base_row("robustness", config, data.name, device=config.device)
    )
    return next((row for row in known if has(row, fields, at_least=attacked, config=config)), None)


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """In a line: the accuracies of the newest row."""
    row = rows[-1]
    accuracies = f"clean {row['clean']:.1f} %, PGD-20 {row['pgd20']:.1f} % of {row['num_images']:,} images"
    if row["autoattack"] is not None:
        accuracies += f", AutoAttack {row['autoattack']:.1f} % of {row['num_autoattack']:,}"
    # Without the compilation, with every evaluation.
    return f"{row['config']['recipe']}: {accuracies}, {row['epochs']} epochs in {row['minutes_total']:.1f} minutes"


if __name__ == "__main__":
    sys.exit(main())
