"""This installation against golden vectors, in float64 and float32: what `fastarat verify` does, for a whole folder.

python -m bench.campaign.golden FOLDER --device cuda
"""

import sys
from pathlib import Path

import torch

from bench.common import command
from fastarat.common.console import progress, stdout
from fastarat.common.errors import UserError
from fastarat.verification.golden_checks import NUM_ROWS, verify_file


def vectors(folder: Path) -> list[Path]:
    """The golden files in a folder. Raises `UserError` if there are none."""
    found = sorted(folder.glob("*.npz"))
    if not found:
        raise UserError(f"{folder} holds no golden vectors: give a folder of .npz files")
    return found


@command.program("bench.campaign.golden")
def main(args: list[str] | None) -> int:
    """Print a line per quantity; 1 if one does not hold."""
    parser = command.Parser("bench.campaign.golden", __doc__)
    parser.add_argument("folder", type=Path, help="golden vectors, .npz")
    command.flags(parser, "device")
    arguments = command.parsed(parser, args, "verifies there")
    device = torch.device(arguments.device)
    torch.backends.cudnn.allow_tf32 = False  # TF32 keeps 10 bits of 23: not what float32 promises
    cases = [(file, dtype) for file in vectors(arguments.folder) for dtype in (torch.float64, torch.float32)]
    rows = []
    with progress("golden vectors", NUM_ROWS * len(cases)) as advance:
        for file, dtype in cases:
            for row in verify_file(file, dtype, device):
                rows.append(row)
                advance(1)
                verdict = "holds" if row.holds else "FAILS"
                name = f"{file.stem} {str(dtype).removeprefix('torch.')} {row.quantity}"
                stdout.print(f"{name:72s} {row.error:8.1e} of {row.tolerance:.0e}  {verdict}", markup=False)
    failed = sum(not row.holds for row in rows)
    stdout.print(f"{failed} of {len(rows)} fail" if failed else f"all {len(rows)} quantities hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
