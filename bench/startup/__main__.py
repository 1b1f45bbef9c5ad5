"""How long a start takes: from the command to the first finished training step, and what importing fastarat adds.

    python -m bench.startup
    python -m bench.startup --device cpu --recipe digits-arat --compile compile

Every figure is of fresh processes. `cold` begins with empty compile caches, `warm` with those it left; PyTorch's files
are in memory either way. Images are random, of the data set's size. Reading the command line's flags is not counted.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import command
from bench.common.processes import Failed, OutOfTime, compile_caches, environment, result_of
from bench.common.rows import RESULTS, Row, has_row, rows_from_here, write_row
from bench.common.timing import percentiles
from bench.startup.in_a_process import training_config
from bench.startup.report import headline, print_tables
from fastarat.common.choice_log import ChoiceLog
from fastarat.common.console import notice, progress
from fastarat.common.errors import UserError, WorkError
from fastarat.training.choices import choose_compile, choose_kernels

MODULES = ("fastarat", "fastarat.training.train")
PROMISED_S = 0.5
"""the most that importing fastarat may add to importing torch"""
IMPORTS = {"cuda": 5, "cpu": 9}
"""fresh processes for each module; fewer where time is short"""
SMOKE_IMPORTS = 2
KEYS = ("case", "module", "cache", "config", "torch")
"""what tells a row from others of the same commit and machine"""


@command.program("bench.startup")
def main(args: list[str] | None) -> int:
    """Measure, print, write rows; 0 if everything started, 1 if not, 2 for what cannot be run."""
    arguments = _arguments(args)
    rows = []
    with tempfile.TemporaryDirectory(prefix="fastarat-startup-") as caches:
        starts = Starts(arguments, Path(caches))
        with progress("starts", 2 + len(MODULES)) as advance:
            try:
                for row in starts.rows():
                    rows.append(row)
                    advance(1)
            except OutOfTime:
                notice(f"budget: {len(rows)} of {2 + len(MODULES)} rows measured, the rest left out")
    return command.report(rows, arguments, print_tables, headline)


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser("bench.startup", __doc__)
    parser.add_argument("--recipe", help="default: cifar10-resnet18-arat on a GPU, digits-arat on a CPU")
    parser.add_argument("--compile", choices=("auto", "eager", "compile", "graph"), default="auto")
    parser.add_argument("--kernels", choices=("auto", "pytorch", "triton"), default="auto")
    command.flags(parser, "device", "rows", "budget", "resume", "smoke", "json")
    arguments = command.parsed(parser, args, "starts a training there", rows=(None, RESULTS / "startup.jsonl", None))
    on_gpu = arguments.device == "cuda"
    arguments.recipe = arguments.recipe or ("cifar10-resnet18-arat" if on_gpu else "digits-arat")
    config = training_config(vars(arguments)).checked()
    if not on_gpu:  # on a GPU the first process says it: this one must not hold the GPU
        mode = choose_compile(config, "cpu", ChoiceLog(quiet=True))
        choose_kernels(config, "cpu", "fp32", mode, ChoiceLog(quiet=True))
    command.check_positive(arguments, "budget")
    command.check_writable(arguments.rows)
    return arguments


class Starts:
    """Measures each start, unless it has a row already."""

    def __init__(self, arguments: argparse.Namespace, caches: Path):
        self.arguments = arguments
        self.settings = {name: getattr(arguments, name) for name in ("recipe", "device", "compile", "kernels", "smoke")}
        self.variables = environment(**compile_caches(caches))
        self.end = time.monotonic() + (arguments.budget or math.inf)

    def rows(self) -> Iterator[Row]:
        """The rows, each written when it is there: first those of whole starts. Raises `OutOfTime`."""
        base = self._base()
        done = rows_from_here("startup", self.arguments.rows, base) if self.arguments.resume else []
        imports = [{**base, "case": "import", "module": module} for module in MODULES]
        starts = [{**base, "case": "first step", "cache": cache} for cache in ("cold", "warm")]
        left_imports, left_starts = ([row for row in rows if not _is_among(row, done)] for rows in (imports, starts))
        for row in starts + imports:
            if _is_among(row, done):
                notice(f"{row.get('module') or row['cache'] + ' start'}: measured already")
        if left_starts:  # a warm start needs the caches of a cold one
            yield from (self._write(self._start(row)) for row in starts)
        yield from map(self._write, self._imports(left_imports))

    def _write(self, row: Row) -> Row:
        write_row(self.arguments.rows, row)
        return row

    def _base(self) -> Row:
        """The fields that all rows share, from a process of its own: this one must not hold the GPU.

        It also brings PyTorch's files into memory.
        """
        code = (
            "import json, sys; from bench.common.rows import base_row\n"
            "from bench.startup.in_a_process import training_config\n"
            "settings = json.loads(sys.argv[1])\n"
            "print(json.dumps(base_row('startup', training_config(settings), 'random', device=settings['device'])))"
        )
        try:
            return self._result("-c", code, json.dumps(self.settings))
        except Failed as error:
            raise WorkError(f"Python does not start: {error}") from error

    def _imports(self, rows: list[Row]) -> Iterator[Row]:
        """What each module's import takes once torch is there: processes in turns."""
        found: dict[str, list[list[float]]] = {row["module"]: [] for row in rows}
        for _ in range(SMOKE_IMPORTS if self.arguments.smoke else IMPORTS[self.arguments.device]):
            for module in found:
                code = (
                    "import time; a = time.perf_counter(); import torch; b = time.perf_counter()\n"
                    f"import {module}; print([b - a, time.perf_counter() - b])"
                )
                try:
                    found[module].append(self._result("-c", code))
                except Failed as error:
                    raise WorkError(f"import {module} fails: {error}") from error
        for row in rows:
            of_torch, own = zip(*found[row["module"]], strict=True)
            times = {"torch_s": median(of_torch), **percentiles("s", own)}
            rounded = {name: round(value, 4) for name, value in times.items()}
            yield {**row, "correct": True, **rounded, "promised_s": PROMISED_S}

    def _start(self, row: Row) -> Row:
        """A training's start, to its second step."""
        arguments = ("bench.startup.in_a_process", repr(time.monotonic()), json.dumps(self.settings))
        try:
            found = {"correct": True, "recipe": self.arguments.recipe, **self._result("-m", *arguments)}
        except Failed as error:
            if error.code == 2:
                raise UserError(str(error)) from error
            notice(f"{row['cache']} start failed: {error}")
            found = {"correct": False, "error": str(error), "recipe": self.arguments.recipe}
        return row | found

    def _result(self, *arguments: str) -> Any:
        return result_of(arguments, self.variables, self.end)


def _is_among(row: Row, rows: list[Row]) -> bool:
    return has_row(rows, {"correct": True, **{key: row.get(key) for key in KEYS}})


if __name__ == "__main__":
    sys.exit(main())
