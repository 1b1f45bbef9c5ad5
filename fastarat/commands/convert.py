"""`fastarat convert FILE`: read a checkpoint of the published AR-AT code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastarat.commands.parsing import Printed, parse
from fastarat.common.console import command, print_json, stdout


@dataclass(frozen=True)
class ConvertArguments(Printed):
    """Make a run of a checkpoint of the published AR-AT code, for eval, export and train --resume.

    For example: fastarat convert arat_resnet18.pth --out runs/published-resnet18
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """.pt, .pth (a state_dict of tensors) or .safetensors"""
    out: Path
    """the new run's directory"""
    data: str | None = None
    """the data set it was trained on; default cifar10 or cifar100, by the number of classes"""


def run(args: list[str]) -> int:
    """Convert and print where the run is."""
    arguments = parse(ConvertArguments, args, "fastarat convert")
    from fastarat.training.published_checkpoint import convert

    run = convert(arguments.file, arguments.out, arguments.data)
    if arguments.json:
        print_json({"run": str(run.path), "model": run.config().model.name})
    else:
        stdout.print(f"{run.path}: {run.config().model.name}; measure it with {command('eval', run.path)}")
    return 0
