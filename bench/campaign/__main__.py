"""All that a GPU can tell in a short time: one command that ends in time; the next call goes on where it ended.

    python -m bench.campaign --budget 540 --out rows --data cifar10
    python -m bench.campaign --budget 540 --out rows --device cpu --smoke

Each stage is a process of its own with a share of the time: one that fails, hangs or crashes is a row that says so, and
the rest runs. --out gets the rows as they are made, and small files; --state keeps checkpoints, compile caches and logs
for the next call. What has rows of this commit and GPU in --state, --out or bench/results is done. A copy without git
history is told its commit by $FASTARAT_COMMIT; where the commit is unknown nothing counts as done.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from bench.campaign.files import OutFolder, carry
from bench.campaign.golden import vectors
from bench.campaign.run import Campaign, Result
from bench.campaign.stages import CampaignSetting, stages
from bench.common import command
from bench.common.processes import ROOT
from fastarat.common.console import notice, print_table
from fastarat.common.durations import duration
from fastarat.common.environment import commit
from fastarat.common.errors import UserError
from fastarat.common.files import expanded
from fastarat.data.formats import cifar, prepared
from fastarat.data.formats.archives import stem
from fastarat.data.formats.find import FORMATS, find


@command.program("bench.campaign")
def main(args: list[str] | None) -> int:
    """Run what there is time for and print how it went; 1 if a stage failed, 2 for what cannot be run, 128 and its
    number after a signal."""
    started = time.monotonic()
    arguments = _arguments(args)
    out_folder = OutFolder(arguments.out, arguments.state / "aside")
    carry(arguments.state / "rows", arguments.out, commit())
    campaign = Campaign(_setting(arguments), arguments.state, started + arguments.budget, out_folder=out_folder)
    if commit() is None:
        notice("commit: unknown, so nothing counts as done; set FASTARAT_COMMIT to what this copy was made from")
    results = campaign.run(stages(campaign.setting))
    _print(results, time.monotonic() - started, arguments)
    if campaign.interrupted:
        return 128 + campaign.interrupted
    return 1 if any(result.state == "failed" for result in results) else 0


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked; both folders are there. Raises `UserError`."""
    parser = command.Parser("bench.campaign", __doc__)
    parser.add_argument("--budget", type=float, required=True, metavar="SECONDS", help="end within this time")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows, tables and traces: 8 files of 16 MB")
    parser.add_argument("--state", type=Path, help="folder for checkpoints, compile caches and logs (runs/campaign)")
    parser.add_argument("--golden", type=Path, metavar="FOLDER", help="golden vectors to verify; default: none")
    data = "data set; without it nothing is trained, and speeds are those of random images"
    command.flags(parser, "smoke", data=data, device="cpu only with --smoke")
    arguments = command.parsed(parser, args, "with --smoke shows that everything runs")
    if arguments.device == "cpu" and not arguments.smoke:
        raise UserError("a campaign measures a GPU: give --smoke, which on a CPU shows that everything runs")
    command.check_positive(arguments, "budget")
    if arguments.state is None:
        arguments.state = ROOT / "runs" / ("campaign-smoke" if arguments.smoke else "campaign")
    for name in ("out", "state"):
        setattr(arguments, name, command.folder(f"--{name}", getattr(arguments, name)))
    if arguments.state.is_relative_to(arguments.out):
        raise UserError(f"--state {arguments.state} lies in --out, which is for results alone: give another")
    (arguments.state / "rows").mkdir(exist_ok=True)
    if arguments.golden is not None:
        vectors(arguments.golden)
    if arguments.data is not None:
        arguments.data = _absolute(arguments.data)
    return arguments


def _absolute(data: str) -> str:
    """A path as it is from anywhere; a name as it is. Raises `UserError` if there is no such data set."""
    find(data)
    path = expanded(data)
    return str(path.resolve()) if path.exists() else data


def _setting(arguments: argparse.Namespace) -> CampaignSetting:
    golden = arguments.golden.resolve() if arguments.golden else None
    # A training goes on from a checkpoint of its own commit alone.
    runs = arguments.state / "runs" / (commit() or "unknown")
    runs.mkdir(parents=True, exist_ok=True)
    data = arguments.data
    return CampaignSetting(arguments.out, runs, data, dataset_name(data), golden, arguments.device, arguments.smoke)


def dataset_name(data: str | None) -> str:
    """What a row calls the data set: known without opening it, which may mean decoding it."""
    if data is None:
        return "random"
    found = find(data)
    if found.format is FORMATS["prepared"]:
        return prepared.read(found.path).name
    archive = cifar.recognise(found.path) if found.format is FORMATS["cifar"] else None
    return archive.name if archive else stem(Path(data))


def _print(results: list[Result], seconds: float, arguments: Any) -> None:
    cells = [[r.stage, r.state, f"{r.seconds:.0f}", r.headline[:100]] for r in results]
    print_table("", ["stage", "state", "seconds", "result"], cells)
    where = f"on {'a CPU' if arguments.device == 'cpu' else 'this GPU'}"
    where += ", with small sizes: no figure says anything of speed" if arguments.smoke else ""
    notice(
        f"ended after {duration(seconds)} of {duration(arguments.budget)}, {where}; logs: {arguments.state / 'logs'}"
    )
    if left := sum(result.is_open for result in results):
        notice(f"{left} of {len(results)} stages are open: the same command goes on with them")


if __name__ == "__main__":
    sys.exit(main())
