"""`fastarat export RUN|FILE`: a model that needs only PyTorch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastarat.commands.parsing import Printed, parse
from fastarat.common.console import print_json, stdout


@dataclass(frozen=True)
class ExportArguments(Printed):
    """Write a model that needs only PyTorch: safetensors, a model.py, a model card, and ONNX if asked.

    For example: fastarat export runs/digits-arat --out exported --onnx
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN|FILE")]
    """a run's directory, or its model.safetensors"""
    out: Path | None = None
    """the new directory; default RUN/export"""
    branch: Literal["adv", "clean"] = "adv"
    """the batch-norm branch; adv is the deployed one"""
    checkpoint: str | None = None
    """of a run: last, best, or a step's number, instead of the deployed weights"""
    onnx: bool = False
    """write model.onnx too (needs the onnx extra)"""


def run(args: list[str]) -> int:
    """Export and print the files."""
    arguments = parse(ExportArguments, args, "fastarat export")
    from fastarat.data.formats.find import require_apart
    from fastarat.runs.deployed import images_of, load_deployed
    from fastarat.runs.export import export

    model, description = load_deployed(arguments.model, arguments.checkpoint, arguments.branch)
    home = arguments.model.parent if arguments.model.is_file() else arguments.model
    out = arguments.out or home / "export"
    require_apart(out, images_of(home, description))
    files = export(model, description, out, arguments.onnx)
    if arguments.json:
        print_json([str(path) for path in files])
    else:
        stdout.print("\n".join(map(str, files)))
    return 0
