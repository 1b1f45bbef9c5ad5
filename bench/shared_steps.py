"""What it costs that two processes of this machine share a step: `python -m bench.shared_steps`.

In turns, on random images: one process that computes the whole batch by two threads; two processes of one thread with
half of it each, whose gradients are averaged; the same with one batch-norm over both; two that exchange nothing; and
one of these alone. So the ratios say what two processes cost beside the same work in one, without and with --sync-bn,
what of it is the exchange, and what a core costs that is not alone; by the clock, and once by CPU time, which other
work on the machine moves less.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from bench.common import command
from bench.common.inputs import random_images
from bench.common.rows import RESULTS, Row, base_row, markdown, place, write_row
from fastarat.common.console import print_table
from fastarat.common.distributed import World
from fastarat.common.heap import keep_freed_memory
from fastarat.common.turns import take_turns
from fastarat.config import Config
from fastarat.config.recipes import recipe
from fastarat.training.build import build_training
from fastarat.training.compiling.compiled import build_step

ROWS = RESULTS / "shared_steps.jsonl"
ALONE, WHOLE = "half alone", "one process"
TWO, APART, AS_ONE = "two processes", "two that exchange nothing", "two, --sync-bn"
VARIANTS = (WHOLE, TWO, AS_ONE, APART, ALONE)
RATIOS = ((TWO, WHOLE), (AS_ONE, WHOLE), (TWO, APART), (APART, ALONE))
NUM_PROCESSES = 2


@command.program("bench.shared_steps")
def main(args: list[str] | None) -> int:
    """Measure, write a row, print the table."""
    arguments = _arguments(args)
    config = replace(recipe(arguments.recipe), num_validation_images=0)
    config = replace(config, batch=arguments.batch or config.batch)
    with TemporaryDirectory(prefix="fastarat-") as folder:
        settings = (config, arguments.compile, arguments.steps, arguments.repeats, Path(folder))
        torch.multiprocessing.start_processes(_measure, settings, NUM_PROCESSES, start_method="spawn")
        turns = torch.load(Path(folder, "turns.pt"))
    row = {
        **base_row("shared_steps", config, "random", device="cpu"),
        "correct": True,
        "compile": arguments.compile,
        "steps": arguments.steps,
        "turns_ms": {name: [round(1e3 * wall, 2) for wall, _ in turns[name]] for name in VARIANTS},
        "turns_cpu_ms": {name: [round(1e3 * cpu, 2) for _, cpu in turns[name]] for name in VARIANTS},
    }
    write_row(arguments.rows or ROWS, row)
    print_table("", *table([row]))
    return 0


def _arguments(args: list[str] | None) -> argparse.Namespace:
    parser = command.Parser("bench.shared_steps", __doc__)
    parser.add_argument("--recipe", default="cifar10-tiny-arat")
    parser.add_argument("--batch", type=int, help="images of both; default the recipe's")
    parser.add_argument("--compile", choices=("eager", "compile"), default="eager")
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    command.flags(parser, "repeats", rows="where the row goes (bench/results/shared_steps.jsonl)")
    parser.set_defaults(repeats=15)
    arguments = parser.parse_args(args)
    command.check_positive(arguments, "batch", "steps", "repeats")
    return arguments


def _measure(rank: int, config: Config, compile_mode: Any, num_steps: int, repeats: int, folder: Path) -> None:
    """In one of the processes: take all turns together; the first writes its seconds of a step, and of its CPU time."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_PROCESSES)
    shared, own = World(torch.device("cpu"), rank, NUM_PROCESSES, dist.group.WORLD), World(torch.device("cpu"))
    half = replace(config, batch=config.batch // NUM_PROCESSES)
    steps = {
        TWO: _steps(config, shared, compile_mode, num_steps),
        AS_ONE: _steps(replace(config, sync_bn=True), shared, compile_mode, num_steps),
        APART: _steps(half, own, compile_mode, num_steps),
    }
    if rank == 0:
        steps |= {ALONE: steps[APART], WHOLE: _steps(config, own, compile_mode, num_steps)}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for name in (*VARIANTS, *take_turns(list(VARIANTS), repeats)):  # the first round warms up
        torch.set_num_threads(NUM_PROCESSES if name == WHOLE else 1)
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        if name in steps:
            steps[name]()
        cpu = time.process_time() - cpu
        if name not in (ALONE, WHOLE):
            dist.barrier()  # a step is done when both have done it
        turns[name].append(((time.perf_counter() - wall) / num_steps, cpu / num_steps))
    if rank == 0:
        torch.save({name: found[1:] for name, found in turns.items()}, folder / "turns.pt")
    dist.destroy_process_group()


def _steps(config: Config, world: World, compile_mode: Any, num_steps: int) -> Callable[[], None]:
    """What takes `num_steps` steps on one batch."""
    training = build_training(config, random_images("cifar10", config.batch * world.size), world, dtype="fp32")
    step = build_step(training.parts, training.controls, compile_mode, unroll=True)
    batch = next(iter(training.loader.batches(1)))

    def take() -> None:
        for _ in range(num_steps):
            step(batch)

    return take


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Milliseconds a step by the clock, and the ratios of turns; of CPU time where both have one thread."""
    cells = []
    for row in rows:
        cell = [f"{row['config']['recipe']}, batch {row['config']['batch']}, {row['compile']}"]
        for name in VARIANTS:
            turns = row["turns_ms"][name]
            cell.append(f"{median(turns):.1f} ({min(turns):.1f}-{max(turns):.1f})")
        cell += [_ratio(row["turns_ms"][one], row["turns_ms"][other]) for one, other in RATIOS]
        cells.append([*cell, _ratio(row["turns_cpu_ms"][TWO], row["turns_cpu_ms"][ALONE])])
    ratios = [f"{one} / {other}" for one, other in RATIOS]
    return ["step", *(f"ms: {name}" for name in VARIANTS), *ratios, f"{TWO} / {ALONE}, CPU time"], cells


def _ratio(turns: list[float], others: list[float]) -> str:
    ratios = sorted(mine / other for mine, other in zip(turns, others, strict=True))
    quarter = len(ratios) // 4
    return f"{median(ratios):.3f} ({ratios[quarter]:.3f}-{ratios[-1 - quarter]:.3f})"


def as_markdown(rows: list[Row]) -> str:
    """The table, with where it was measured; empty for no rows."""
    if not rows:
        return ""
    what = f"Medians of turns (least-most; of ratios the middle half); fp32, one thread each, {WHOLE} two"
    return f"{markdown(*table(rows))}\n{what}; {place(*rows)}.\n"


if __name__ == "__main__":
    sys.exit(main())
