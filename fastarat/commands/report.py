"""`fastarat report RUN…`: one page of a run, or of several beside one another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastarat.commands.parsing import Printed, named_device, parse
from fastarat.common.console import notice, print_json, stdout
from fastarat.common.errors import UserError


@dataclass(frozen=True)
class ReportArguments(Printed):
    """Write one HTML file that needs nothing else: verdict, doubts, curves, classes, images, cost, choices.

    Several runs stand beside one another, with a test of their differences.
    For example: fastarat report runs/digits-arat runs/digits-at --out both.html
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """runs' directories"""
    out: Path | None = None
    """the file; default RUN/report.html, of several runs report.html"""
    num_images: int = 500
    """test images on which each model is evaluated by PGD-20, to show those that fool it; 0: none"""
    data: str | None = None
    """where the images lie now; default where each run found them"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


def run(args: list[str]) -> int:
    """Write the page, and print where it is and each run's verdict, or JSON."""
    arguments = parse(ReportArguments, args, "fastarat report")
    if not arguments.runs:
        raise UserError("give one run or more: fastarat report RUN")
    if arguments.num_images < 0:
        raise UserError(f"--num-images {arguments.num_images}: give 0 or more")
    from fastarat.reports.report import check_runs, write_report

    out = arguments.out or (arguments.runs[0] if len(arguments.runs) == 1 else Path()) / "report.html"
    check_runs(arguments.runs, out, arguments.data)
    device = named_device(arguments.device)
    verdicts = write_report(
        arguments.runs, out, num_images=arguments.num_images, device=device.type, data=arguments.data
    )
    if arguments.json:
        print_json({"report": str(out), "bytes": out.stat().st_size, "verdicts": verdicts})
    else:
        for name, verdict in verdicts.items():
            stdout.print(verdict if len(verdicts) == 1 else f"{name}: {verdict}")
        notice(f"{out}: {out.stat().st_size / 1e6:.1f} MB, to be opened in any browser")
    return 0
