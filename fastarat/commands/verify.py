"""`fastarat verify FILE.npz`: check this installation against golden vectors."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastarat.cli import parse
from fastarat.console import print_json, progress, stdout
from fastarat.errors import UserError


@dataclass(frozen=True)
class VerifyArguments:
    """Compare what this installation computes with golden vectors of AR-AT; exit 0 only if all agree.

    For example: fastarat verify arat_resnet18.npz --dtype float32 --device cuda
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE.npz")]
    """golden vectors; the file says net, salt, classes and weights"""
    dtype: Literal["float64", "float32"] = "float64"
    """precision of the check; tolerances go with it"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to compute"""
    json: bool = False
    """print the rows as JSON"""


def run(args: list[str]) -> int:
    """Print a row per quantity; 1 if one does not hold."""
    arguments = parse(VerifyArguments, args, "fastarat verify")
    import torch

    from fastarat.verify import NUM_ROWS, verify_file

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no GPU that torch can use; leave it out for the CPU")
    torch.backends.cudnn.allow_tf32 = False  # TF32 keeps 10 bits of 23: not what float32 promises
    rows = []
    with progress(f"verifying {arguments.file.name}", NUM_ROWS) as advance:
        for row in verify_file(arguments.file, getattr(torch, arguments.dtype), torch.device(arguments.device)):
            rows.append(row)
            advance(1)
            if not arguments.json:
                verdict = "holds" if row.holds else "FAILS"
                stdout.print(f"{row.quantity:48s} error {row.error:8.1e}  tolerance {row.tolerance:.0e}  {verdict}")
    failed = [row.quantity for row in rows if not row.holds]
    if arguments.json:
        print_json([{**asdict(row), "holds": row.holds} for row in rows])
    else:
        stdout.print(f"all {len(rows)} quantities hold" if not failed else f"{len(failed)} of {len(rows)} fail")
    return 1 if failed else 0
