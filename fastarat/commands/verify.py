"""`fastarat verify FILE.npz|DIR`: check this installation against stored results."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fastarat.commands.parsing import Printed, named_device, parse
from fastarat.common.console import print_json, progress, stdout
from fastarat.common.errors import UserError
from fastarat.verification import PARTS, PartName

if TYPE_CHECKING:
    import torch

    from fastarat.verification.compare import Count, Row


@dataclass(frozen=True)
class VerifyArguments(Printed):
    """Compare what this installation computes with stored results; exit 0 only if all agree.

    A file holds golden vectors of AR-AT. A directory is a kit of AutoAttack's results (nets as data, flags, images,
    single steps), or has such files and kits in it; everything in it is compared.

    For example: fastarat verify arat_resnet18.npz --dtype float32 --device cuda
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE.npz|DIR")]
    """golden vectors of AR-AT; a kit of AutoAttack's; or a directory of both"""
    dtype: Literal["float64", "float32"] = "float64"
    """precision in which AR-AT's vectors are compared; tolerances go with it (a kit says its own)"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to compute"""
    only: tuple[PartName, ...] = PARTS
    """these parts of kits; the whole attacks take minutes, all else seconds"""


def run(args: list[str]) -> int:
    """Print a row per quantity; 1 if one does not hold."""
    arguments = parse(VerifyArguments, args, "fastarat verify")
    from fastarat.common.tf32 import without_tf32

    rows, device = [], named_device(arguments.device)
    with without_tf32():
        for row in _rows(arguments, device):
            rows.append(row)
            if not arguments.json:
                verdict = "holds" if row.holds else "FAILS"
                stdout.print(f"{row.quantity:72s} {row.evidence:44s} {verdict}")
    if not rows:
        raise UserError(
            f"{arguments.path} holds no {' and no '.join(arguments.only) or 'part'}: give other parts to --only"
        )
    failed = [row.quantity for row in rows if not row.holds]
    if arguments.json:
        print_json([row.to_json() for row in rows])
    else:
        stdout.print(f"all {len(rows)} quantities hold" if not failed else f"{len(failed)} of {len(rows)} fail")
    return 1 if failed else 0


def _rows(arguments: VerifyArguments, device: "torch.device") -> "Iterator[Row | Count]":
    """All rows of a file, a kit, or the files and kits of a directory, as they are computed."""
    import torch

    from fastarat.verification.plan import parts_of

    for path, parts in parts_of(arguments.path, device, getattr(torch, arguments.dtype), arguments.only):
        with progress(f"verifying {path.name}", sum(part.work for part in parts)) as advance:
            for part in parts:
                yield from part.rows(advance)
