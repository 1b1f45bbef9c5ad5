"""Images/s and CPU time of each loader, and the share of a training step that passes in waiting for it.

    python -m bench.loaders --data cifar10 --photos photos.tar
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
from typing import get_args

from bench.common import command
from bench.common.inputs import random_images
from bench.common.rows import RESULTS, Row, base_row, has_row, rows_from_here, write_row
from bench.loaders.cases import PHOTOS, SMALL, LoaderCase, cases_of, photo_plan, small_plan
from bench.loaders.feeds import LOADERS
from bench.loaders.measure import LoaderEffort, measure, rows_of
from bench.loaders.report import headline, print_tables
from bench.loaders.stores import Stored, Stores, photo_stores, random_photos, small_stores
from fastarat.common.console import notice, progress
from fastarat.common.errors import UserError
from fastarat.data.formats.find import find
from fastarat.data.images.dataset import Dataset
from fastarat.data.open import open_dataset

KINDS = ("small", "photos")
STORED = get_args(Stored)


@command.program("bench.loaders")
def main(args: list[str] | None) -> int:
    """Measure, print, write rows; 0 if every loader was right, 1 if not, 2 for what cannot be run."""
    arguments = _arguments(args)
    return command.report(list(_run(arguments)), arguments, print_tables, headline)


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser("bench.loaders", __doc__)
    parser.add_argument("--photos", type=Path, help="JPEGs: an image folder or a tar; default: none (smoke: random)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: both")
    parser.add_argument("--loaders", nargs="+", metavar="NAME", default=list(LOADERS), help=", ".join(LOADERS))
    parser.add_argument("--stored", nargs="+", choices=STORED, default=list(STORED), help="default: all")
    parser.add_argument("--workers", nargs="+", type=int, help="threads or processes that decode (1 2; smoke: 1)")
    parser.add_argument("--seconds", type=float, help="of steady epochs and of training in a turn (5; smoke: 0.1)")
    data = "images of one small size: a name or path; default: random ones, CIFAR's size"
    command.flags(parser, *command.FLAGS, data=data, repeats="turns (5; CPU: 3; smoke: 2)")
    arguments = command.parsed(
        parser,
        args,
        "measures the loaders beside a training on the CPU",
        workers=([1], [1, 2], [1, 2]),
        repeats=(2, 5, 3),
        seconds=(0.1, 5.0, 5.0),
        rows=(None, RESULTS / "loaders.jsonl", None),  # tiny sizes say nothing of speed
    )
    command.check_positive(arguments, "repeats", "seconds", "budget")
    if min(arguments.workers) < 1:
        raise UserError(f"--workers is {min(arguments.workers)}: give a number above 0")
    command.check_spread(arguments.repeats)
    command.check_known("loader", arguments.loaders, LOADERS)
    for data in filter(None, (arguments.data, arguments.photos)):
        find(str(data))
    command.check_writable(arguments.rows)
    return arguments


def _run(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of both kinds of images, each kind's written when it is done."""
    end = time.monotonic() + (arguments.budget or float("inf"))
    effort = LoaderEffort(arguments.repeats, arguments.seconds, end)
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
                measured = measure(cases, Path(folder) / "cache", effort, advance=advance)
        for row in rows_of(measured, _base(stores, arguments)):
            write_row(arguments.rows, row)
            yield row


def _prepared(kind: str, arguments: argparse.Namespace, folder: Path) -> tuple[Stores, list[LoaderCase]]:
    """The images in all their forms, in `folder`, and the loaders to be measured. Raises `UserError`."""
    every = SMALL if kind == "small" else PHOTOS
    readers = [(name, shape) for name, shape in every if name in arguments.loaders and shape[1] in arguments.stored]
    shapes = {shape for _, shape in readers}
    if kind == "small":
        dataset = _small(arguments)
        stores = small_stores(dataset, shapes, folder)
        plan = small_plan(arguments.device, arguments.smoke, dataset.image_shape[0])
    else:
        source = arguments.photos or folder / "random-photos.tar"
        if arguments.photos is None:
            random_photos(source, 24)
        stores = photo_stores(source.resolve(), shapes, folder)
        plan = photo_plan(arguments.device, arguments.smoke)
    return stores, cases_of(readers, stores, plan, workers=arguments.workers, device=arguments.device)


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
    return base_row("loaders", settings, stores.name, device=arguments.device)


def _is_done(stores: Stores, cases: list[LoaderCase], arguments: argparse.Namespace) -> bool:
    """Whether every loader has right rows by this commit on this machine's GPU."""
    known = rows_from_here("loaders", arguments.rows, _base(stores, arguments))
    alike = [row for row in known if row["config"]["smoke"] == arguments.smoke]
    right = {"dataset": stores.name, "correct": True}
    return all(has_row(alike, {**right, **case.key, "stage": stage}) for case in cases for stage in case.stages)


if __name__ == "__main__":
    sys.exit(main())
