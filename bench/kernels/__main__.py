"""Every kernel against plain PyTorch, inductor and NVIDIA's apex, over the layer shapes of ResNet-18 and WRN-34-10.

    python -m bench.kernels --budget 300
    python -m bench.kernels --device cpu --smoke

Correctness first: outputs and gradients are compared with the definition in float64, and what is wrong gets no time.
Speeds are shares of the bandwidth of a large copy in the same run. On a CPU the kernels' PyTorch twins run instead.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.common import command
from bench.common.rows import RESULTS, base_row, write_row
from bench.common.timing import copy_bandwidth
from bench.kernels.cases import DTYPES, KernelCase, Scale, cases_of, measured
from bench.kernels.dual_batch_norm import apex_batch_norm
from bench.kernels.measure import Bench, failed_case, measure_case
from bench.kernels.report import headline, print_tables
from fastarat.common.console import notice, progress


@command.program("bench.kernels")
def main(args: list[str] | None) -> int:
    """Measure, print, write rows; 0 if everything was right, 1 if not, 2 for what cannot be run."""
    arguments = _arguments(args)
    if not apex_batch_norm():
        notice("apex: not installed, so not compared")
    if arguments.smoke and arguments.device == "cpu":
        notice("inductor: left out by --smoke on a CPU, where its C++ compilation takes long")
    scale = Scale(arguments.batch, arguments.smoke)
    # The first dtype in full comes first, should the budget end.
    cases = [case for d in arguments.dtype for name in arguments.kernels for case in cases_of(name, scale, DTYPES[d])]
    rows = run(cases, _bench(arguments), arguments.rows, budget=arguments.budget)
    return command.report(rows, arguments, print_tables, headline)


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser("bench.kernels", __doc__)
    names = measured()
    help = f"of {', '.join(names)}; default: all"
    parser.add_argument("--kernels", nargs="+", metavar="NAME", default=names, help=help)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: bf16 fp16, on a CPU fp32")
    parser.add_argument("--batch", type=int, help="clean images a step (128; smoke: 4)")
    smoke = "tiny shapes, on a CPU no inductor: does everything run?"
    repeats = "timings of each variant (50; CPU: 5; smoke: 1)"
    command.flags(parser, "device", "rows", "budget", "json", repeats=repeats, smoke=smoke)
    arguments = command.parsed(
        parser,
        args,
        "runs the kernels' PyTorch twins",
        batch=(4, 128, 128),
        repeats=(1, 50, 5),
        rows=(None, RESULTS / "kernels.jsonl", None),  # tiny shapes say nothing of speed
    )
    arguments.dtype = arguments.dtype or (["bf16", "fp16"] if arguments.device == "cuda" else ["fp32"])
    command.check_known("kernel", arguments.kernels, names)
    command.check_positive(arguments, "batch", "repeats", "budget")
    command.check_writable(arguments.rows)
    return arguments


def _bench(arguments: argparse.Namespace) -> Bench:
    device = torch.device(arguments.device)
    config = {name: value for name, value in vars(arguments).items() if name != "rows"}
    return Bench(
        device,
        arguments.repeats,
        arguments.smoke,
        copy_bandwidth(device, max(arguments.repeats, 5)),
        base_row("kernels", config, None, device=arguments.device),
    )


def run(cases: list[KernelCase], bench: Bench, path: Path | None, *, budget: float | None) -> list[dict[str, Any]]:
    """The rows of all cases, each written when it is there; those whose end the `budget` would not see are left out."""
    start, longest, rows = time.monotonic(), 0.0, []
    with progress("kernels", len(cases)) as advance:
        for done, case in enumerate(cases):
            begun = time.monotonic()
            if budget is not None and begun + longest > start + budget:
                notice(f"budget: {done} of {len(cases)} cases measured, {len(cases) - done} left out")
                break
            try:
                found = measure_case(case, bench)
            except Exception as error:
                found = failed_case(case, bench, error)
            for row in found:
                write_row(path, row)
            rows += found
            # The first case also pays for starting the compiler.
            seconds = time.monotonic() - begun
            longest = seconds if done == 1 else max(longest, seconds)
            advance(1)
    return rows


if __name__ == "__main__":
    sys.exit(main())
