"""Try a change of a recipe on validation images, of which a fast recipe is made: no test image is looked at.

    python -m bench.speedrun.tries --validation 360 --seeds 0 1 2 -- digits-at --epochs 20 --schedule.name cyclic

Behind `--` stands what `fastarat train` takes. The training images are split by each seed; the last epoch counts. Each
training is a line of --lines; what was learned goes into the benchmarks' log.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.common import command
from bench.common.rows import write_row
from bench.speedrun.one_run import reached
from bench.speedrun.report import spread
from fastarat.commands.train import parse_arguments
from fastarat.common.console import stdout
from fastarat.common.errors import UserError
from fastarat.config import Config
from fastarat.data.open import open_dataset
from fastarat.training.build import split_training_images
from fastarat.training.train import train

ATTACK = "apgd-ce,apgd-t"
"""what of AutoAttack finds nearly all that it finds, in a fraction of its time"""


@command.program("bench.speedrun.tries")
def main(args: list[str] | None) -> int:
    """Train and measure, seed by seed, and say what the change gives."""
    arguments = _arguments(sys.argv[1:] if args is None else args)
    found = []
    for seed in arguments.seeds:
        config = replace(
            arguments.config,
            seed=seed,
            num_validation_images=arguments.validation,
            evaluation=replace(arguments.config.evaluation, every_epochs=0),
        )
        line = _try(config.checked(), arguments)
        write_row(arguments.lines, {"tried": arguments.change, "seed": seed, **line})
        found.append(line)
    names = ("clean", "autoattack", "seconds", "cpu_seconds")
    clean, robust, seconds, cpu = (spread([line[name] for line in found]) for name in names)
    change = " ".join(arguments.change)
    stdout.print(f"{change}: clean {clean}, robust {robust}, {seconds} s, {cpu} s of CPU", markup=False)
    return 0


def _try(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a training by `config` reaches on its validation images, and the seconds of its steps, and of its CPU time,
    which a machine with other work changes less."""
    with tempfile.TemporaryDirectory(prefix="fastarat-try-") as folder:
        before = time.process_time()
        run = train(config, Path(folder, "run"), loggers=("csv",))
        cpu_seconds = round(time.process_time() - before, 2)
        dataset = open_dataset(config.data)
        _, images = split_training_images(config, dataset)
        last = [line for line in run.metrics() if "train" in line][-1]
        number = arguments.num_attacked or len(images.labels)
        accuracies = reached(run, dataset, images, number, name=f"seed {config.seed}", attack=arguments.attack)
        return {"seconds": last["seconds"], "cpu_seconds": cpu_seconds, "train": last["train"], **accuracies}


def _arguments(args: list[str]) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser("bench.speedrun.tries", __doc__)
    parser.add_argument("--validation", type=int, required=True, metavar="N", help="training images to measure on")
    parser.add_argument("--num-attacked", type=int, help="of them to attack; default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--attack", default=ATTACK, help=f"default {ATTACK}")
    parser.add_argument("--lines", type=Path, help="a file that each training adds a line to")
    at = args.index("--") if "--" in args else len(args)
    arguments = parser.parse_args(args[:at])
    arguments.change = args[at + 1 :]
    if not arguments.change:
        raise UserError("nothing to try: give -- RECIPE [FLAGS], as 'fastarat train' takes them")
    command.check_positive(arguments, "validation", "num_attacked")
    command.check_writable(arguments.lines)
    arguments.config = parse_arguments(arguments.change).config
    return arguments


if __name__ == "__main__":
    sys.exit(main())
