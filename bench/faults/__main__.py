"""What becomes of a run of two machines when something fails: hosts in network namespaces of this one (root, ip).

    python -m bench.faults
    python -m bench.faults --tries 1 --faults machine

A row a fault: how long until the run goes on or has ended, what was said, processes left ten seconds later, and of
faults after which both go on how many bits of the result differ from an undisturbed run's. Both machines share the
cores of this one, so that starting Python and torch takes most of the seconds.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import command
from bench.common.differences import num_different_bits
from bench.common.hosts import Host, hosts
from bench.common.rows import RESULTS, Row, base_row, write_row
from bench.faults.faults import FAULTS, Fault
from bench.faults.scene import ELASTIC, FINITE, TRAIN, Scene
from fastarat.common.console import notice, print_table, progress
from fastarat.common.errors import UserError, WorkError

NET, PREFIX = "10.78.0", "faults"
PORTS = count(29700)


@command.program("bench.faults")
def main(args: list[str] | None) -> int:
    """Let everything fail, print, write rows; 0 if all ended as it has to, 1 if not."""
    parser = command.Parser("bench.faults", __doc__)
    parser.add_argument("--tries", type=int, help="of each fault (default: 10)")
    parser.add_argument("--faults", default="", help="those whose name holds this text (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    command.flags(parser, "device", "rows", "smoke", "json")
    path = RESULTS / "faults.jsonl"
    arguments = command.parsed(parser, args, "is where it runs", rows=(None, path, path), tries=(1, 10, 10))
    command.check_positive(arguments, "tries")
    command.check_writable(arguments.rows)
    chosen = [fault for fault in FAULTS if arguments.faults in fault.name]
    if not chosen:
        raise UserError(f"--faults {arguments.faults}: no fault is named so; {', '.join(f.name for f in FAULTS)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="fastarat-faults-") as folder, hosts(2, PREFIX, NET) as machines:
        for row in _rows(chosen, arguments, machines, Path(folder)):
            write_row(arguments.rows, row)
            rows.append(row)
    return command.report(rows, arguments, print_tables, headline)


def _rows(chosen: Sequence[Fault], arguments: argparse.Namespace, machines: list[Host], folder: Path) -> Iterator[Row]:
    moments, whole = random.Random(arguments.seed), None
    with progress("tries", len(chosen) * arguments.tries) as advance:
        for fault in chosen:
            if fault.bits_stay and whole is None:
                whole = _undisturbed(machines, folder / "whole", moments)
            tries = []
            for i in range(arguments.tries):
                scene = Scene(machines, folder / f"{fault.name} {i}", moments, next(PORTS))
                tries.append(_tried(fault, scene, whole))
                notice(f"{fault.name}, try {i + 1}: {tries[-1]}")
                shutil.rmtree(folder / f"{fault.name} {i}", ignore_errors=True)
                advance(1)
            settings = {"command": TRAIN, "tries": arguments.tries, "seed": arguments.seed}
            yield {**base_row("faults", settings, "digits", device="cpu"), **_summary(fault, tries)}


def _undisturbed(machines: list[Host], folder: Path, moments: random.Random) -> Path:
    scene = Scene(machines, folder, moments, next(PORTS))
    for which in range(2):
        scene.start(which, *ELASTIC, *FINITE)
    scene.ended(0, 1)
    scene.end()
    return scene.run


def _tried(fault: Fault, scene: Scene, whole: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {"seconds": None, "said": "", "bits": None}
    try:
        seconds, said = fault.do(scene)
        bits = num_different_bits(scene.run, whole) if fault.bits_stay and whole else None
        found = {"seconds": round(seconds, 1), "said": said, "bits": bits}
    except (WorkError, UserError) as error:
        found["said"] = str(error)
    finally:
        found["left"] = scene.end()
        time.sleep(1)
    is_right = found["seconds"] is not None and fault.says in found["said"] and not found["bits"] and not found["left"]
    return {**found, "correct": is_right}


def _summary(fault: Fault, tries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = [found["seconds"] for found in tries if found["seconds"] is not None]
    bits = [found["bits"] for found in tries if found["bits"] is not None]
    wrong = [found["said"] or "nothing was said" for found in tries if not found["correct"]]
    return {
        "case": fault.name,
        "outcome": fault.outcome,
        "tries": len(tries),
        "as_it_has_to": sum(found["correct"] for found in tries),
        "seconds_p50": median(seconds) if seconds else None,
        "seconds_most": max(seconds, default=None),
        "left": max(found["left"] for found in tries),
        "bits": max(bits, default=None),
        "said": tries[-1]["said"],
        "correct": not wrong,
        **({"error": wrong[0]} if wrong else {}),
    }


COLUMNS = ("what fails", "the run", "as it has to", "seconds: median (most)", "processes left", "bits that differ")


def cells(row: Row) -> list[str]:
    """A row of the table."""
    seconds = "-" if row["seconds_p50"] is None else f"{row['seconds_p50']:.0f} ({row['seconds_most']:.0f})"
    bits = "-" if row["bits"] is None else str(row["bits"])
    tries = f"{row['as_it_has_to']} of {row['tries']}"
    return [row["case"], row["outcome"], tries, seconds, str(row["left"]), bits]


def print_tables(rows: Sequence[Row]) -> None:
    """The table, to stdout."""
    print_table("faults", [*COLUMNS], [cells(row) for row in rows])


def headline(rows: Sequence[Row]) -> str:
    """In a line: how many tries ended as they have to."""
    return f"{sum(row['as_it_has_to'] for row in rows)} of {sum(row['tries'] for row in rows)} tries as it has to be"


if __name__ == "__main__":
    sys.exit(main())
