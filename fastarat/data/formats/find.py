"""What `--data NAME|PATH` means: where a data set lies, and in which of the formats; a row of `FORMATS` for each."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastarat.common.console import command
from fastarat.common.errors import UserError, unknown
from fastarat.common.files import expanded
from fastarat.data.formats import arrays, cifar, digits, image_folder, prepared, shard_index, shards
from fastarat.data.formats.archives import ARCHIVE_SUFFIXES, is_clutter, is_compressed
from fastarat.data.formats.beton import file as beton
from fastarat.data.images.cache import CACHES, data_root
from fastarat.data.images.damaged import readable
from fastarat.data.images.dataset import Dataset
from fastarat.data.images.whole_sets import Corrupt, decoded, of_readable_images

KNOWN = ("digits", *cifar.ARCHIVES)


@dataclass(frozen=True)
class Format:
    """A way to store a data set, which is `read` as a whole, or image by image as it is `stored`, or either."""

    label: str
    """what a listing calls it, before its path"""
    suffixes: tuple[str, ...] = ()
    """of its files, which `--data NAME` leaves out"""
    tells: Callable[[Path], bool] | None = None
    """whether what lies there, which exists, is of this format; None: a file with one of the suffixes is"""
    read: Callable[[Path], Dataset] | None = None
    """the data set with all of its images decoded"""
    stored: Callable[[Path], Dataset] | None = None
    """the data set with its images where they lie; where their sizes are 0, each is decoded once before it is used"""
    one_by_one: Callable[[Path], bool] = lambda path: True
    """whether `stored` can be had of this one"""
    decode: "Decoding | None" = None
    """for images that are decoded as a whole sooner than one by one"""
    problems: Callable[[Path], list[str]] | None = None
    """everything wrong with it, a line each; None: what `read` raises is all there is to find"""
    info: Callable[[Path], dict[str, Any]] | None = None
    """what it holds, for a table or JSON; None: as `described`"""

    def has(self, path: Path) -> bool:
        """Whether what lies there is of this format, if it is of none before it in the table."""
        return self.tells(path) if self.tells else path.name.endswith(self.suffixes) and not path.is_dir()


@dataclass(frozen=True)
class Decoding:
    """How all images of a format are decoded into a prepared set."""

    prepare: Callable[[Path, Path, int | None], None]
    """decode what lies at the first path into a new prepared set at the second, at this size"""
    once: Callable[[Path, int | None], Dataset]
    """the same, kept for the next time"""
    is_done: Callable[[Path], bool]
    """whether it has been, at the images' own size, or must be for any image to be read"""
    outline: Callable[[Path], tuple[int, tuple[int, int]]]
    """the number of training images, and (width, height) of the first image"""


FORMATS: dict[str, Format] = {
    "digits": Format("in the package", read=lambda path: digits.load(), problems=lambda path: []),
    "prepared": Format(
        "prepared set",
        tells=prepared.is_prepared,
        read=prepared.read,
        stored=prepared.stored,
        one_by_one=prepared.reads_one_by_one,
        problems=prepared.problems,
    ),
    "shards": Format("shards in", tells=shards.is_shards, stored=shard_index.indexed_once, problems=shards.problems),
    "cifar": Format("archive", ARCHIVE_SUFFIXES, cifar.tells, read=cifar.read, problems=cifar.problems),
    "images": Format(
        "images in",
        ARCHIVE_SUFFIXES,
        image_folder.tells,
        stored=image_folder.stored,
        one_by_one=lambda path: not is_compressed(path),
        decode=Decoding(image_folder.prepare, image_folder.decoded_once, image_folder.is_decoded, image_folder.outline),
        problems=image_folder.problems,
    ),
    "arrays": Format("arrays in", (".npz",), read=arrays.read),
    "beton": Format("FFCV file", (".beton",), stored=beton.read, problems=beton.problems, info=beton.info),
}


@dataclass(frozen=True)
class Found:
    """A data set that was found, and its format; it opens itself."""

    format: Format
    path: Path
    """where it lies; meaningless for the digits"""
    name: str
    """what a command would call it"""

    @property
    def is_one_by_one(self) -> bool:
        """Whether an image can be had without the others."""
        return self.format.stored is not None and self.format.one_by_one(self.path)

    @property
    def is_decoded(self) -> bool:
        """Whether opening it with its images decoded decodes nothing again, or is the only way to open it."""
        decode = self.format.decode
        return decode.is_done(self.path) if decode else self.format.read is not None

    def open(self, size: int | None = None) -> Dataset:
        """The data set with all of its images decoded; `size`, of images in files alone, resizes and crops them.

        Images in files are decoded on first use and kept under `data_root()`. Raises `UserError` for what cannot be
        used, `WorkError` where nothing can be written.
        """
        if self.format.decode:
            return self.format.decode.once(self.path, size)
        if self.format.read is None:
            return decoded(self.open_stored(), size)
        dataset = self.format.read(self.path)
        height, width = dataset.image_shape[:2]
        if size is not None and (height, width) != (size, size):
            raise UserError(
                f"{self.name} has images of {width}x{height}: only stored images can be resized (--size {size})"
            )
        return dataset

    def open_stored(self, corrupt: Corrupt = "fatal") -> Dataset:
        """The data set with nothing decoded, of images each of which can be.

        One that cannot be is an error that names it, or (`corrupt` skip) is named and left out. Raises `UserError` for
        what cannot be read image by image, too.
        """
        if self.format.stored is None:
            raise UserError(
                f"the images of this data set are not in files of their own: make them so, "
                f"{command('data', 'prepare', self.name, 'OUT')}, or use the resident loader"
            )
        dataset = self.format.stored(self.path)
        are_sizes_known = bool(dataset.stored_splits["train"].sizes.all())
        return dataset if are_sizes_known else of_readable_images(dataset, self.path, corrupt)


def find(data: str | Path) -> Found:
    """Where `data` lies and how it is stored. Raises `UserError` with the way to get what is missing."""
    data = str(data)
    if data == "digits":
        return Found(FORMATS["digits"], Path(), data)
    path = expanded(data)
    with readable(path):
        is_there = path.exists() or path.is_symlink()
    if data in cifar.ARCHIVES or not is_there:
        path = _under_root(data)
    with readable(path):
        path.stat()  # of a link to nothing nobody looks for another set of its name
    found = next((row for row in FORMATS.values() if row.has(path)), None)
    if found is None:
        raise UserError(f"{path} is not a data set: expected a folder or {', '.join(_suffixes())}")
    return Found(found, path, str(path))


def place_of(data: str) -> str:
    """What names the same data set from any folder: the whole path of one that is named by a path, else `data`."""
    path = expanded(data)
    return data if data in KNOWN or not path.exists() else str(path.absolute())


def require_apart(out: Path, data: str) -> None:
    """Raise `UserError` if `out` is the folder of the data set `data`, or lies in it: it would be taken for a part."""
    try:
        folder = None if data == "digits" else find(data).path
    except UserError:  # it is not here
        return
    if folder and folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out} lies in the data set {folder}, which it would spoil: give a place outside of it")


def names_under_root() -> list[str]:
    """The names that `find` accepts because something lies under `data_root()`, in addition to the known ones."""
    root = data_root()
    if not root.is_dir():
        return []
    with readable(root):
        found = [path for path in root.iterdir() if not path.name.startswith(".") and path.name not in CACHES]
    published = {archive.filename for archive in cifar.ARCHIVES.values()}
    names = set()
    for path in found:
        suffix = next((suffix for suffix in _suffixes() if path.name.endswith(suffix)), "")
        if not is_clutter(path.name) and (path.is_dir() or (suffix and path.name not in published)):
            names.add(path.name.removesuffix(suffix))
    return sorted(names - set(KNOWN))


def _suffixes() -> list[str]:
    """The suffixes of all formats, each once."""
    return list(dict.fromkeys(suffix for row in FORMATS.values() for suffix in row.suffixes))


def _under_root(name: str) -> Path:
    root = data_root()
    archive = cifar.ARCHIVES.get(name)
    filenames = [archive.filename] if archive else []
    filenames += [name, *(name + suffix for suffix in _suffixes())]
    for filename in filenames:
        if os.path.lexists(root / filename) and filename not in ("", ".", "..", *CACHES):
            return root / filename
    if archive:
        raise UserError(f"{name} is not under {root} yet: run 'fastarat data fetch {name}'")
    if "/" in name or Path(name).suffix in (*_suffixes(), ".gz", ".xz", ".bz2"):
        hint = "; of shards, give the folder that they are in" if set("{*?[") & set(name) else ""
        forms = f"give a folder, a file ({', '.join(_suffixes())}), or a name that {command('data', 'list')} shows"
        raise UserError(f"there is no file or folder {name}{hint}: {forms}")
    error = unknown("data set", name, [*KNOWN, *names_under_root()])
    raise UserError(f"{error} (names are looked up under {root}, FASTARAT_DATA; a path may be given instead)")
