"""Images/s and CPU time of each loader, and the share of a training step that passes in waiting for it.

    python -m bench.loaders --data cifar10-jpeg --photos photos.tar
    python -m bench.loaders --device cpu --smoke

Correctness first: a loader whose pixels are not those that PIL reads from the same files gets no speed. Every figure is
of a fresh process; the loaders take turns, and are compared turn by turn with the plain loader on the same stored
images and with as many workers. `first` is the epoch in which everything starts, its files dropped from memory;
`steady` the epochs after it; `training` is fastarat's own step, fed by the loader.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from bench.common import command
from bench.common.inputs import random_images
from bench.common.rows import RESULTS, base_row, read_rows, write_row
from bench.loaders.cases import PHOTOS, SMALL, Case, photo_cases, photo_plan, shapes, small_cases, small_plan
from bench.loaders.feeds import LOADERS
from bench.loaders.measure import Effort, measure, rows_of
from bench.loaders.report import print_report
from bench.loaders.stores import Stored, Stores, photo_stores, random_photos, small_stores
from fastarat.common.console import notice, print_json, progress
from fastarat.common.errors import UserError, unknown
from fastarat.data.formats.find import find
from fastarat.data.images.dataset import Dataset
from fastarat.data.open import open_dataset

Row = dict[str, Any]

KINDS = ("small", "photos")
STORED = get_args(Stored)


def main(args: list[str] | None = None) -> int:
    """Measure, print, write rows; 0 if every loader was right, 1 if not, 2 for what cannot be run."""
    return command.run("bench.loaders", _main, args)


def _main(args: list[str] | None) -> int:
    arguments = _arguments(args)
    rows = list(_run(arguments))
    print_json(rows) if arguments.json else print_report(rows)
    return 0 if all(row["correct"] for row in rows) else 1


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser(
        prog="bench.loaders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="images of one small size: a name or path; default: random ones, CIFAR's size")
    parser.add_argument("--photos", type=Path, help="JPEGs: an image folder or a tar; default: none (smoke: random)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: both")
    parser.add_argument("--loaders", nargs="+", metavar="NAME", default=list(LOADERS), help=", ".join(LOADERS))
    parser.add_argument("--stored", nargs="+", choices=STORED, default=list(STORED), help="default: all")
    parser.add_argument("--workers", nargs="+", type=int, help="threads or processes that decode (1 2; smoke: 1)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="of the training; default: cuda where there is a GPU")
    parser.add_argument("--repeats", type=int, help="turns (5; CPU: 3; smoke: 2)")
    parser.add_argument("--seconds", type=float, help="of steady epochs and of training in a turn (5; smoke: 0.1)")
    parser.add_argument("--rows", type=Path, help="where rows go (bench/results/loaders.jsonl; CPU: nowhere)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="end in time, with what was measured till then")
    parser.add_argument("--resume", action="store_true", help="skip kinds that have rows of this commit, GPU and data")
    parser.add_argument("--smoke", action="store_true", help="a few tiny images: does everything run?")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of tables")
    arguments = parser.parse_args(args)
    arguments.device = command.device_of(arguments.device, "measures the loaders beside a training on the CPU")
    _set_defaults(arguments)
    for name in ("repeats", "seconds", "budget"):
        command.check_positive(arguments, name)
    if min(arguments.workers) < 1:
        raise UserError(f"--workers is {min(arguments.workers)}: give a number above 0")
    if arguments.repeats == 1:
        raise UserError("--repeats is 1: one turn has no spread, give 2 or more")
    for name in arguments.loaders:
        if name not in LOADERS:
            raise unknown("loader", name, LOADERS)
    for data in filter(None, (arguments.data, arguments.photos)):
        find(str(data))
    if arguments.rows is not None:
        command.check_writable(arguments.rows)
    return arguments


def _set_defaults(arguments: argparse.Namespace) -> None:
    smoke, on_gpu = arguments.smoke, arguments.device == "cuda"
    defaults = {
        "workers": [1] if smoke else [1, 2],
        "repeats": 2 if smoke else 5 if on_gpu else 3,
        "seconds": 0.1 if smoke else 5.0,
        # Tiny sizes say nothing of speed: their rows go only where they are asked to.
        "rows": RESULTS / "loaders.jsonl" if on_gpu and not smoke else None,
    }
    for name, default in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)


def _run(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of both kinds of images, each kind's written when it is done."""
    end = time.monotonic() + (arguments.budget or float("inf"))
    effort = Effort(arguments.repeats, arguments.seconds, end)
    for kind in arguments.kinds:
        if kind == "photos" and arguments.photos is None and not arguments.smoke:
            notice("photographs are left out: give --photos PATH")
            continue
        with tempfile.TemporaryDirectory(prefix="fastarat-loaders-") as folder:
            stores, cases = _prepared(kind, arguments, Path(folder))
            if arguments.resume and _is_done(stores, cases, arguments):
                notice(f"{stores.name}: has rows of this commit")
                continue
            with progress(f"loaders on {stores.name}", 1) as advance:
                entries = measure(cases, Path(folder) / "cache", effort, advance)
        for row in rows_of(entries, _base(stores, arguments)):
            if arguments.rows is not None:
                write_row(arguments.rows, row)
            yield row


def _prepared(kind: str, arguments: argparse.Namespace, folder: Path) -> tuple[Stores, list[Case]]:
    """The images in all their forms, in `folder`, and the loaders to be measured. Raises `UserError`."""
    wanted = {"workers": arguments.workers, "device": arguments.device}
    forms = shapes(SMALL + PHOTOS, arguments.loaders, arguments.stored)
    if kind == "small":
        dataset = _small(arguments)
        stores = small_stores(dataset, forms, folder)
        plan = small_plan(arguments.device, arguments.smoke, dataset.image_shape[0])
        cases = small_cases(stores, plan, **wanted)
    else:
        source = arguments.photos or folder / "random-photos.tar"
        if arguments.photos is None:
            random_photos(source, 24)
        stores = photo_stores(source.resolve(), forms, folder)
        cases = photo_cases(stores, photo_plan(arguments.device, arguments.smoke), **wanted)
    return stores, [case for case in cases if case.loader in arguments.loaders and case.stored in arguments.stored]


def _small(arguments: argparse.Namespace) -> Dataset:
    if arguments.data is None:
        return random_images("cifar10", 256 if arguments.smoke else None)
    dataset = open_dataset(arguments.data)
    height, width, channels = dataset.image_shape
    if (channels, dataset.max_value) != (3, 255) or height != width:
        raise UserError(f"--data {arguments.data} is not of square 8-bit RGB images: give a set such as cifar10")
    return dataset


def _base(stores: Stores, arguments: argparse.Namespace) -> Row:
    settings = {name: getattr(arguments, name) for name in ("workers", "repeats", "seconds", "budget", "smoke")}
    return base_row("loaders", settings, stores.name, arguments.device)


def _is_done(stores: Stores, cases: list[Case], arguments: argparse.Namespace) -> bool:
    """Whether every loader has right rows by this commit on this machine's GPU."""
    now = _base(stores, arguments)
    told = {name: now[name] for name in ("dataset", "commit", "gpu", "device")}
    found = [
        row
        for row in read_rows(*{RESULTS / "loaders.jsonl", *filter(None, [arguments.rows])})
        if row["correct"] and told.items() <= row.items() and row["config"]["smoke"] == arguments.smoke
    ]
    wanted = [{**case.key, "stage": stage} for case in cases for stage in case.stages]
    return now["commit"] is not None and all(any(w.items() <= row.items() for row in found) for w in wanted)


if __name__ == "__main__":
    sys.exit(main())
