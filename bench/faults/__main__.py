"""What becomes of a run of two machines when something fails: hosts in network namespaces of this one (root, ip).

    python -m bench.faults --resume
    python -m bench.faults --tries 1 --faults machine
    python -m bench.faults --resume --share 1/2       # of two processes, each with two machines of its own

Faults come at random moments, several of them to one run where it goes on (`bench.faults.stories`). A row a fault that
happened: when, how long until the run went on or had ended, what was said, processes left ten seconds later, and of
faults after which both go on how many bits of the result differ from an undisturbed run's. All machines share the cores
of this one, so that starting Python and torch takes most of the seconds.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from bench.common import command
from bench.common.differences import num_different_bits
from bench.common.hosts import Host, hosts
from bench.common.rows import RESULTS, Row, base_row, read_rows, write_row
from bench.common.shares import share
from bench.faults.report import headline, key_of, print_tables
from bench.faults.scene import ELASTIC, FINITE, TRAIN, Scene, Try
from bench.faults.stories import STORIES, Story
from fastarat.common.console import notice
from fastarat.common.errors import UserError, WorkError

NET, PREFIX = "10.78", "faults"
PORTS = count(29700)


@command.program("bench.faults")
def main(args: list[str] | None) -> int:
    """Let everything fail, print, write rows; 0 if all ended as it has to, 1 if not."""
    arguments = _arguments(args)
    wanted = _wanted(arguments)
    rows, share = [], arguments.share[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastarat-faults-")))
        machines = stack.enter_context(hosts(2, f"{PREFIX}{share}", f"{NET}.{share}"))
        begin, whole = time.monotonic(), None
        for number, (story, i) in enumerate(wanted, 1):
            if story.bits_stay and whole is None:
                whole = _undisturbed(machines, folder / "whole")
            for row in _told(story, i, arguments.seed, machines, folder / "scene", whole):
                write_row(arguments.rows, row)
                rows.append(row)
                notice(_line(row))
            minutes = (time.monotonic() - begin) / number * (len(wanted) - number) / 60
            notice(f"{number} of {len(wanted)} runs, about {minutes:.0f} min left")
    return command.report(rows, arguments, print_tables, headline)


def _arguments(args: list[str] | None) -> argparse.Namespace:
    parser = command.Parser("bench.faults", __doc__)
    parser.add_argument("--tries", type=int, help="of each fault (default: 10)")
    parser.add_argument("--faults", default="", help="runs in which a fault happens whose name holds this text")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    helped = "K/N: the K-th of N processes, which share the runs"
    parser.add_argument("--share", type=share, default=(1, 1), metavar="K/N", help=helped)
    resume = "leave out the tries that have rows"
    command.flags(parser, "device", "rows", "smoke", "json", resume=resume)
    path = RESULTS / "faults.jsonl"
    arguments = command.parsed(parser, args, "is where it runs", rows=(None, path, path), tries=(1, 10, 10))
    command.check_positive(arguments, "tries")
    command.check_writable(arguments.rows)
    return arguments


def _wanted(arguments: argparse.Namespace) -> list[tuple[Story, int]]:
    """The stories that this process tells, each with the number of the time. Raises `UserError` if there are none."""
    chosen = [story for story in STORIES if any(arguments.faults in fault.name for fault in story.faults)]
    if not chosen:
        names = ", ".join(fault.name for story in STORIES for fault in story.faults)
        raise UserError(f"--faults {arguments.faults}: no fault is named so; {names}")
    written = read_rows(*filter(None, [arguments.rows])) if arguments.resume else ()
    have = {key_of(row)[1:4] for row in written}
    every = [(story, i) for i in range(arguments.tries) for story in chosen]
    mine, of = arguments.share
    return [(story, i) for story, i in every[mine - 1 :: of] if (arguments.seed, story.name, i) not in have]


def _undisturbed(machines: list[Host], folder: Path) -> Path:
    scene = Scene(machines, folder, random.Random(0), next(PORTS))
    scene.trains(*ELASTIC, *FINITE)
    scene.ended(0, 1)
    scene.end()
    return scene.run


def _told(
    story: Story, number: int, seed: int, machines: list[Host], folder: Path, whole: Path | None
) -> Iterator[Row]:
    """Tell a story for the `number`-th time; yields a row a fault, the last of which is why it ended too early."""
    scene = Scene(machines, folder, random.Random(f"{seed} {story.name} {number}"), next(PORTS))
    failure, bits = "", None
    try:
        story.tell(scene)
        bits = num_different_bits(scene.run, whole) if story.bits_stay and whole else None
    except (WorkError, UserError) as error:
        failure = str(error)
        scene.tries = scene.tries or [Try(story.faults[0], 0.0)]
    finally:
        left = scene.end()
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(1)
    scene.tries[-1].left = max(scene.tries[-1].left, left)
    settings = {"command": TRAIN, "seed": seed}
    for place, happened in enumerate(scene.tries):
        row = base_row("faults", settings, "digits", device="cpu")
        yield {**row, "story": story.name, "try": number, "place": place, **_found(happened, bits, failure)}


def _found(happened: Try, bits: int | None, failure: str) -> Row:
    fault = happened.fault
    said = happened.said if happened.seconds is not None else failure
    is_right = happened.seconds is not None and fault.says in said and not happened.left and not bits
    is_right = is_right and (bits is not None or not fault.bits_stay)
    return {
        "case": fault.name,
        "outcome": fault.outcome,
        "moment": happened.moment,
        "seconds": None if happened.seconds is None else round(happened.seconds, 1),
        "said": said,
        "left": happened.left,
        "bits": bits,
        "correct": is_right,
        **({} if is_right else {"error": failure or said or "nothing was said"}),
    }


def _line(row: Row) -> str:
    what = f"{row['case']}, try {row['try']}, {row['moment']:.1f} s after the run had begun or gone on"
    return (
        f"{what}: {'' if row['correct'] else 'NOT as it has to: '}{row['seconds']} s, {row['left']} left; {row['said']}"
    )


if __name__ == "__main__":
    sys.exit(main())
