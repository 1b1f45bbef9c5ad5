"""`fastarat data build`: a data set written as one .beton.

FFCV's own writer is not used: it waits forever for a process that has died or a disk that is full, writes images in
a random order, and encodes every JPEG a second time. This one's file is the same for any number of processes.
"""

import contextlib
import os
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastarat.common import console, unfinished
from fastarat.common.console import require_none
from fastarat.common.errors import UserError
from fastarat.common.files import synchronise
from fastarat.common.json_files import write_sealed
from fastarat.data.formats.beton import seal as beton_seal
from fastarat.data.formats.beton import structure
from fastarat.data.formats.beton.storage import Storage, StoredImage, record
from fastarat.data.images.damaged import writable
from fastarat.data.images.dataset import MAX_VALUE, Dataset, Images, class_counts
from fastarat.data.images.decoding import File
from fastarat.data.images.pool import in_order


def build(dataset: Dataset, out: Path, storage: Storage, *, source: str, processes: int | None = None) -> None:
    """Write `dataset` as the new file `out` and its seal beside it, both whole or not at all.

    Every image is decoded, by `processes` processes (None: one a core). `source` says where the images come from, in
    messages and the seal. Raises `UserError` for images that cannot be stored and for an `out` that exists, `WorkError`
    if the disk is full or a process dies.
    """
    storage.require()
    _require_usable(dataset, out, source)
    with writable(out, "nothing was left there"), unfinished.beside(out) as folder:
        pages = _write(dataset, folder / out.name, storage, source=source, processes=processes)
        _require_usable(dataset, out, source)  # still: that was hours ago
        _publish(_seal_of(dataset, folder / out.name, storage, source=source, pages=pages), folder / out.name, out)


def _require_usable(dataset: Dataset, out: Path, source: str) -> None:
    if out.suffix != ".beton":
        raise UserError(f"{out}: give a name that ends with .beton")
    for path in (out, beton_seal.place_of(out)):
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists already: choose another place, or remove it first")
    shapes = [part.images.shape for part in dataset.splits.values() if isinstance(part, Images)]
    if dataset.max_value != MAX_VALUE or any(shape[-1] != 3 for shape in shapes):
        raise UserError(
            f"{source} is not of 8-bit RGB images, which a .beton holds: it is small, use --loader resident"
        )


@dataclass
class _Pages:
    """Images on their way into the file."""

    file: BinaryIO
    position: int
    page: int = structure.MIN_PAGE
    starts: array = field(default_factory=partial(array, "Q"))
    lengths: array = field(default_factory=partial(array, "Q"))
    crc32: array = field(default_factory=partial(array, "L"))
    images: list[tuple[int, int, int]] = field(default_factory=list)
    """(mode, width, height) of each"""

    def append(self, image: StoredImage) -> None:
        """Write the next image. Pages double for one larger than they are: two pages that no image crosses make one."""
        length = len(image.content)
        while length > self.page:
            self.page *= 2
        if self.position // self.page != (self.position + length - 1) // self.page:
            self.position = structure.aligned(self.position, self.page)
            self.file.seek(self.position)
        self.file.write(image.content)
        self.starts.append(self.position)
        self.lengths.append(length)
        self.crc32.append(zlib.crc32(image.content))
        self.images.append((structure.RAW if image.raw else structure.JPEG, image.width, image.height))
        self.position += length


def _write(dataset: Dataset, path: Path, storage: Storage, *, source: str, processes: int | None) -> _Pages:
    """Write the file at `path`; its header comes last."""
    count = len(dataset.train) + len(dataset.test)
    begin = structure.HEADER.itemsize + len(structure.FIELDS) * structure.FIELD.itemsize
    with path.open("xb") as file:
        pages = _Pages(
            file, structure.aligned(begin + count * structure.struct_of(structure.FIELDS).itemsize, structure.MIN_PAGE)
        )
        file.seek(pages.position)
        problems: list[str] = []
        with console.progress(f"Building from {dataset.name}", count) as advance:
            for stored in in_order(partial(record, storage=storage), _items(dataset), count, processes=processes):
                if isinstance(stored, str):
                    problems.append(stored)
                elif not problems:
                    pages.append(stored)
                advance(1)
        require_none(source, problems)
        _finish(pages, dataset, count)
        os.fsync(file.fileno())
    return pages


def _items(dataset: Dataset) -> Iterator[File]:
    for split, part in dataset.splits.items():
        if isinstance(part, Images):
            size = (part.images.shape[2], part.images.shape[1])
            for i, pixels in enumerate(part.images):
                yield File(f"{split} image {i}", pixels.tobytes(), size)
        else:
            yield from map(part.file, range(len(part)))


def _finish(pages: _Pages, dataset: Dataset, count: int) -> None:
    """Write the table behind the pages, and before them what says where it is."""
    table = structure.aligned(pages.position, pages.page)
    entries = np.zeros(count, structure.ENTRY)
    entries["image"], entries["start"], entries["length"] = np.arange(count), pages.starts, pages.lengths
    pages.file.seek(table)
    pages.file.write(entries.tobytes())
    fields = np.array([(kind, name.encode(), b"") for name, kind in structure.FIELDS.items()], structure.FIELD)
    header = np.array([(structure.VERSION, len(structure.FIELDS), pages.page, count, table)], structure.HEADER)
    pages.file.seek(0)
    pages.file.write(header.tobytes() + fields.tobytes() + _structs(pages, dataset).tobytes())
    pages.file.flush()


def _structs(pages: _Pages, dataset: Dataset) -> np.ndarray:
    structs = np.zeros(len(pages.images), structure.struct_of(structure.FIELDS))
    mode, width, height = np.array(pages.images).T
    image = structs["image"]
    image["mode"], image["width"], image["height"], image["start"] = mode, width, height, pages.starts
    structs["label"] = np.concatenate([dataset.train.labels, dataset.test.labels])
    structs["split"][len(dataset.train) :] = 1
    return structs


def _seal_of(dataset: Dataset, path: Path, storage: Storage, *, source: str, pages: _Pages) -> beton_seal.Seal:
    """What is known of the file that was written at `path`."""
    return beton_seal.Seal(
        name=dataset.name,
        classes=dataset.classes,
        max_value=dataset.max_value,
        counts={split: len(part) for split, part in dataset.splits.items()},
        class_counts=class_counts(dataset),
        source=source,
        mode=storage.mode,
        longest_side=storage.longest_side,
        quality=storage.quality,
        bytes=path.stat().st_size,
        sha256=beton_seal.sha256_of(path),
        crc32=np.array(pages.crc32, ">u4").tobytes().hex(),
    )


def _publish(seal: beton_seal.Seal, temporary: Path, out: Path) -> None:
    """Give file and seal their names. The seal, which alone is no data set, comes first: a file alone is as FFCV's."""
    place = beton_seal.place_of(temporary)
    write_sealed(place, asdict(seal))
    place.replace(beton_seal.place_of(out))
    try:
        temporary.rename(out)
    except BaseException:
        with contextlib.suppress(OSError):
            beton_seal.place_of(out).unlink()
        raise
    synchronise(out.parent)
