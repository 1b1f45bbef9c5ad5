"""`fastarat data`: list, fetch, prepare, build, check and describe data sets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastarat.commands.parsing import Printed, parse
from fastarat.common import console
from fastarat.common.errors import unknown
from fastarat.common.files import require_place
from fastarat.data.formats.beton.storage import Storage
from fastarat.data.images.cache import data_root
from fastarat.data.images.dataset import described
from fastarat.data.open import build, prepare
from fastarat.data.tools import check
from fastarat.data.tools.fetch import fetch
from fastarat.data.tools.sheet import is_sheet

Source = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]


@dataclass(frozen=True)
class ListArguments(Printed):
    """List the data sets that `--data` knows by name.

    For example: fastarat data list
    """


@dataclass(frozen=True)
class FetchArguments(Printed):
    """Download a published archive, or take one from this machine, and check it.

    A download that was interrupted goes on where it stopped. For example: fastarat data fetch cifar10
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """cifar10 or cifar100"""
    source: Path | None = None
    """an archive already on this machine, instead of a download"""
    url: str | None = None
    """a mirror's address of the same archive"""


@dataclass(frozen=True)
class PrepareArguments(Printed):
    """Decode a data set once into the prepared form: memory-mapped arrays and a manifest.

    For example: fastarat data prepare photos.tar photos-128 --size 128
    """

    src: Source
    """a known name, an image folder, a tar of one, a CIFAR binary archive or an .npz of images and labels"""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """the new folder for the prepared set"""
    size: int | None = None
    """resize the shorter side to this many pixels and keep the middle (needed if images differ in size)"""


@dataclass(frozen=True)
class BuildArguments(Printed):
    """Write a data set as one .beton, the file that FFCV reads, with its checksums beside it.

    JPEGs that need no shrinking are taken as they are. For example: fastarat data build imagenet imagenet-400.beton
    --longest-side 400
    """

    src: Source
    """an image folder, a tar of one, a folder of shards, a prepared set, a known name, or an .npz file"""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT.beton")]
    """the new file"""
    mode: Literal["raw", "jpeg", "smart"] = "smart"
    """store pixels, JPEGs, or pixels of images so small that they take no more than 16 KiB and JPEGs of the others"""
    longest_side: int | None = None
    """shrink larger images to this many pixels"""
    quality: int = 90
    """JPEG quality of images that are encoded again"""


@dataclass(frozen=True)
class CheckArguments(Printed):
    """Read all of a data set and print every problem; the exit code is 1 if there is any.

    Test images that are training images too are one, and images in two classes.

    For example: fastarat data check photos.tar
    """

    src: Source
    """a known name, a prepared set, an image folder, a tar of one, a .beton, a folder of shards, a CIFAR binary archive
    or an .npz file"""


@dataclass(frozen=True)
class InfoArguments(CheckArguments):
    """Show what a data set holds: classes, counts, shape, fingerprint.

    For example: fastarat data info digits
    """

    sheet: Path | None = None
    """draw some training images of each class into this PNG"""


def run(args: list[str]) -> int:
    """Run the subcommand that `args` begins with; returns the exit code. Raises `UserError`, `WorkError`."""
    if not args or args[0] in ("-h", "--help"):
        console.stdout.print(_overview())
        return 0
    if args[0] not in COMMANDS:
        raise unknown("data command", args[0], COMMANDS)
    arguments, command = COMMANDS[args[0]]
    return command(parse(arguments, args[1:], prog=f"fastarat data {args[0]}"))


def _overview() -> str:
    lines = "\n".join(f"  {name:8} {(told.__doc__ or '').splitlines()[0]}" for name, (told, _) in COMMANDS.items())
    return (
        f"usage: fastarat data COMMAND …  ('fastarat data COMMAND --help' explains one)\n\n{lines}\n\n"
        "For example: fastarat data fetch cifar10"
        f"\n\nNamed data sets lie under {data_root()} (FASTARAT_DATA)."
    )


def _list(arguments: ListArguments) -> int:
    rows = check.listing()
    if arguments.json:
        console.print_json(rows)
        return 0
    for row in rows:
        console.stdout.print(f"{row['name']:16} {row['state']}")
    return 0


def _fetch(arguments: FetchArguments) -> int:
    path = fetch(arguments.name, arguments.source, data_root(), arguments.url)
    if arguments.json:
        console.print_json({"name": arguments.name, "path": str(path)})
    else:
        console.stdout.print(f"{arguments.name} is at {path}, checksum verified.")
    return 0


def _prepare(arguments: PrepareArguments) -> int:
    dataset = prepare(arguments.src, arguments.out, arguments.size)
    return _show(described(dataset), arguments.json)


def _build(arguments: BuildArguments) -> int:
    build(arguments.src, arguments.out, Storage(arguments.mode, arguments.longest_side, arguments.quality))
    return _show(check.info(str(arguments.out)), arguments.json)


def _check(arguments: CheckArguments) -> int:
    problems = check.check(arguments.src)
    if arguments.json:
        console.print_json({"source": arguments.src, "problems": problems})
    else:
        for line in problems or [f"{arguments.src}: no problems found."]:
            console.stdout.print(console.one_line(line))
    return 1 if problems else 0


def _info(arguments: InfoArguments) -> int:
    if arguments.sheet is not None:
        require_place("--sheet", arguments.sheet, is_sheet)
    facts = check.info(arguments.src)
    if arguments.sheet is not None:
        check.draw(arguments.src, arguments.sheet)
        console.notice(f"images of each class: {arguments.sheet}")
    return _show(facts, arguments.json)


def _show(facts: dict[str, Any], as_json: bool) -> int:
    if as_json:
        console.print_json(facts)
        return 0
    plain = {**facts, "classes": f"{len(facts['classes'])}: {', '.join(facts['classes'][:10])}"}
    if "shape" in facts:
        plain["shape"] = "x".join(map(str, facts["shape"]))
    if "sizes" in facts:
        plain["sizes"] = ", ".join(f"{what} {width}x{height}" for what, (width, height) in facts["sizes"].items())
    if "stored" in facts:
        plain["stored"] = ", ".join(f"{count} {kind}" for kind, count in facts["stored"].items())
    for split in ("train", "test"):
        counts = facts[split]
        plain[split] = f"{counts['images']} images, {counts['class_min']} to {counts['class_max']} a class"
    for key, value in plain.items():
        console.stdout.print(f"{key:12} {value}")
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "list": (ListArguments, _list),
    "fetch": (FetchArguments, _fetch),
    "prepare": (PrepareArguments, _prepare),
    "build": (BuildArguments, _build),
    "check": (CheckArguments, _check),
    "info": (InfoArguments, _info),
}
