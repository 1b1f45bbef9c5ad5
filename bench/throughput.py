"""Images/s of adversarial training, from published code to fastarat's default, one change at a time.

    python bench/throughput.py --model resnet18 --method arat --batch 128 --data cifar10
    python bench/throughput.py --device cpu --smoke

Correctness first: a variant whose losses, statistics or weights are not those of the definition gets no speed.
Variants are timed in turns in one process, and compared turn by turn: read the ratios, not the images/s of two runs.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # started as a file, from anywhere: its checkout's packages stand in for its own folder
    checkout = Path(__file__).resolve().parents[1]
    sys.path[:] = [str(checkout), str(checkout / "kernels"), *(p for p in sys.path if Path(p) != checkout / "bench")]

import torch

from bench.common import command
from bench.common.inputs import METHODS, RECIPES, method_of, random_images
from bench.common.rows import RESULTS, base_row, has, rows_from_here, write_rows
from bench.common.timing import copy_bandwidth
from bench.ladder.ladder import LadderEffort, run_ladder
from bench.ladder.report import headline, print_tables
from bench.ladder.variants import NAMES, NEEDS_GPU, left_out
from fastarat.common.console import notice, progress
from fastarat.common.errors import UserError
from fastarat.config import Config
from fastarat.config.recipes import recipe
from fastarat.data.images.dataset import Dataset
from fastarat.data.open import open_dataset
from fastarat.training.tuning.gate import LEARNING_RATE
from fastarat.training.tuning.subject import StepSetting


@command.program("bench.throughput")
def main(args: list[str] | None) -> int:
    """Measure, print, write rows; 0 if everything was right, 1 if not, 2 for what cannot be run."""
    arguments = _arguments(args)
    device = torch.device(arguments.device)
    rows = list(_run(arguments, device))
    command.report(rows, arguments, print_tables, headline)
    return 0 if all(row["correct"] or row["error"] == NEEDS_GPU for row in rows) else 1


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser("bench.throughput", __doc__)
    parser.add_argument("--model", nargs="+", metavar="NAME", help=f"some of {', '.join(RECIPES)}; default: resnet18")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=["arat"], help="default: arat")
    parser.add_argument("--batch", nargs="+", type=int, help="clean images a step (128)")
    parser.add_argument("--attack-steps", type=int, help="default: the recipe's")
    names = ", ".join(NAMES)
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", default=list(NAMES), help=f"some of {names}; default: all"
    )
    command.flags(parser, *command.FLAGS, repeats="turns (7; CPU: 3; smoke: 2)")
    arguments = command.parsed(
        parser,
        args,
        "runs small sizes in minutes with --smoke",
        model=(["digits"], ["resnet18"], ["resnet18"]),
        batch=([8], [128], [128]),
        repeats=(2, 7, 3),
        attack_steps=(2, None, None),
        rows=(None, RESULTS / "throughput.jsonl", None),  # tiny sizes say nothing of speed
    )
    command.check_known("model", arguments.model, RECIPES)
    command.check_known("variant", arguments.variants, NAMES)
    command.check_positive(arguments, "attack_steps", "repeats", "budget")
    if any(batch < 2 for batch in arguments.batch):
        raise UserError(f"--batch is {min(arguments.batch)}: a batch-norm of one image is none, give 2 or more")
    command.check_spread(arguments.repeats)
    command.check_writable(arguments.rows)
    return arguments


def _run(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """The rows of all ladders, each ladder's written when it is done."""
    end = time.monotonic() + (arguments.budget or float("inf"))
    ladders = _ladders(arguments, device)
    bandwidth = copy_bandwidth(device, 5 if arguments.smoke else 20)
    effort = LadderEffort(arguments.repeats, 1 if arguments.smoke else None, end)
    settings = {
        name: value for name, value in vars(arguments).items() if name not in ("rows", "data", "resume", "json")
    }
    for setting in ladders:
        config = setting.config
        title = f"{config.model.name} {method_of(config.recipe)}, batch {config.batch}"
        wanted = set(arguments.variants) - left_out(config)
        if arguments.resume and wanted and wanted <= _done(config, arguments):
            notice(f"{title}: has rows of this commit")
            continue
        if time.monotonic() > end:
            notice(f"budget: {title} left out")
            continue
        with progress(title, 1) as advance:
            rows: list[dict[str, Any]] = []
            for newer in run_ladder(
                setting, arguments.variants, effort, bandwidth=bandwidth, settings=settings, advance=advance
            ):
                write_rows(arguments.rows, newer, instead_of=rows)
                rows = newer
        yield from rows


def _ladders(arguments: argparse.Namespace, device: torch.device) -> list[StepSetting]:
    """What is measured, in order. Raises `UserError` for what cannot be."""
    found = []
    for model in arguments.model:
        if arguments.data is not None:
            dataset = open_dataset(arguments.data)
        else:
            dataset = random_images("digits" if model == "digits" else "cifar10")
        for method in arguments.method:
            found += [
                StepSetting(_config(arguments, dataset, model, method=method, batch=b), dataset, device)
                for b in arguments.batch
            ]
    return found


def _config(arguments: argparse.Namespace, dataset: Dataset, model: str, *, method: str, batch: int) -> Config:
    if batch > len(dataset.train.labels):
        raise UserError(f"--batch {batch} is more than the {len(dataset.train.labels)} images: give a smaller one")
    config = recipe(f"{RECIPES[model]}-{method}")
    return replace(
        config,
        batch=batch,
        num_validation_images=0,
        data=dataset.name,
        # A one-step attack is what its method is, and standard training has none.
        attack=replace(config.attack, steps=min(arguments.attack_steps or math.inf, config.attack.steps)),
        optimizer=replace(config.optimizer, learning_rate=LEARNING_RATE),
    ).checked()


def _done(config: Config, arguments: argparse.Namespace) -> set[str]:
    """The variants of a ladder that have a speed by this commit, or need a GPU that is not there."""
    base = base_row("throughput", config, config.data, device=arguments.device)
    ladder = {"model": config.model.name, "method": method_of(config.recipe), "batch": config.batch}
    of_run = {"attack_steps": arguments.attack_steps, "smoke": arguments.smoke}
    return {
        row["variant"]
        for row in rows_from_here("throughput", arguments.rows, base)
        if has(row, {**ladder, "dataset": config.data}) and has(row["config"]["benchmark"], of_run)
        if row["images_per_s"] is not None or row["error"] == NEEDS_GPU
    }


if __name__ == "__main__":
    sys.exit(main())
