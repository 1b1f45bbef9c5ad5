"""The .beton format, version 2, as FFCV 1.0 reads and writes it; what a file says about itself, compared with its size.

A file is a header, a description of each field, a struct of all fields for every image, pages with the images' bytes
(from a multiple of the page size on; no image crosses a page's end), and a table of where each image's bytes are;
numbers are little-endian. FFCV's reader trusts every number: a wrong pointer ends the process, and a table that is cut
short gives wrong images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastarat.common.errors import UserError
from fastarat.data.formats.beton.seal import REBUILD
from fastarat.data.images.damaged import Damaged, readable

VERSION = 2
MIN_PAGE = 1 << 21
MAX_PAGE = 1 << 31  # the largest power of 2 that the header can hold
MAX_SIDE = 2**16 - 1
FLOAT, INT, IMAGE = 0, 1, 2  # types of fields; FFCV has more, for other things than images and labels
JPEG, RAW = 0, 1  # how an image is stored
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"

HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table", "<u8")],
    align=True,
)
FIELD = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
ENTRY = np.dtype([("image", "<u8"), ("start", "<u8"), ("length", "<u8")])
STORED_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("start", "<u8")])
STORED = {FLOAT: np.dtype("<f8"), INT: np.dtype("<i8"), IMAGE: STORED_IMAGE}

FIELDS = {"image": IMAGE, "label": INT, "split": INT}
"""What `fastarat data build` writes; `split` is 0 for a training and 1 for a test image."""


def struct_of(fields: dict[str, int]) -> np.dtype:
    """The struct that an image has in the file, for these names and types of fields."""
    return np.dtype([(name, STORED[kind]) for name, kind in fields.items()], align=True)


def aligned(position: int, size: int) -> int:
    """The next multiple of `size` from `position` on."""
    return -(-position // size) * size


@dataclass(frozen=True)
class Layout:
    """Where each of N images is, and what it is."""

    starts: np.ndarray
    """int64 [N]: the first byte of each image"""
    lengths: np.ndarray
    """int64 [N]"""
    raw: np.ndarray
    """bool [N]: pixels, else a JPEG file"""
    sizes: np.ndarray
    """int32 [N, 2]: (width, height)"""
    labels: np.ndarray
    """int64 [N]"""
    splits: np.ndarray
    """int64 [N]: 0 training, 1 test"""
    names: tuple[str, ...]
    """what messages call each image"""


def read(path: Path) -> Layout:
    """The layout of the .beton at `path`. Raises `UserError` that says what is wrong with the file."""
    with readable(path):
        try:
            return _read(path)
        except Damaged as error:
            raise UserError(f"{path} {error}: copy it again, or {REBUILD}") from error


def _read(path: Path) -> Layout:
    size = path.stat().st_size
    header = _header(path, size)
    fields = _fields(path, header, size)
    image, label, split = _roles(fields)
    count, struct = int(header["num_samples"]), struct_of(fields)
    begin = HEADER.itemsize + FIELD.itemsize * len(fields)
    end, table = begin + count * struct.itemsize, int(header["table"])
    if not count or end > table or table + count * ENTRY.itemsize != size:
        raise Damaged(f"is damaged or cut short ({count} images and a table at byte {table} do not fit {size} bytes)")
    records = np.fromfile(path, struct, count, offset=begin)
    splits = records[split].astype(np.int64) if split else np.zeros(count, np.int64)
    names = _names(path, splits)
    entries = _entries(path, count, table)
    _require_places(entries, records[image]["start"], end, table, int(header["page_size"]), names)
    _require_images(records[image], entries["length"], names)
    stored = records[image]
    return Layout(
        starts=entries["start"].astype(np.int64),
        lengths=entries["length"].astype(np.int64),
        raw=stored["mode"] == RAW,
        sizes=np.stack([stored["width"], stored["height"]], 1).astype(np.int32),
        labels=records[label].astype(np.int64),
        splits=splits,
        names=names,
    )


def _header(path: Path, size: int) -> np.void:
    if size < HEADER.itemsize:
        raise Damaged("is empty" if size == 0 else f"has {size} bytes, which is no .beton")
    header = np.fromfile(path, HEADER, 1)[0]
    version, page = int(header["version"]), int(header["page_size"])
    if version != VERSION:
        raise Damaged(f"is no .beton of format {VERSION} but says {version} (damaged, or of another version of FFCV)")
    if page & (page - 1) or not MIN_PAGE <= page <= MAX_PAGE:
        raise Damaged(f"is damaged (a page size of {page} bytes)")
    return header


def _fields(path: Path, header: np.void, size: int) -> dict[str, int]:
    """The type of each field by its name."""
    count = int(header["num_fields"])
    if not count or HEADER.itemsize + count * FIELD.itemsize > size:
        raise Damaged(f"is damaged ({count} fields)")
    found = np.fromfile(path, FIELD, count, offset=HEADER.itemsize)
    names = [bytes(name).split(b"\0")[0].decode("ascii", "backslashreplace") for name in found["name"]]
    fields = dict(zip(names, map(int, found["type"]), strict=True))
    foreign = [name for name, kind in fields.items() if kind not in STORED]
    if foreign or len(fields) < count:
        wrong = f"a field {foreign[0]!r} of type {fields[foreign[0]]}" if foreign else "two fields of one name"
        raise Damaged(f"has {wrong}, where fastarat reads images with one whole-number label")
    return fields


def _roles(fields: dict[str, int]) -> tuple[str, str, str | None]:
    """Which fields are the image, the label and, if there is one, the split."""
    images = [name for name, kind in fields.items() if kind == IMAGE]
    numbers = [name for name, kind in fields.items() if kind == INT and name != "split"]
    labels = ["label"] if "label" in numbers else numbers
    if len(images) != 1 or len(labels) != 1:
        raise Damaged(f"has the fields {', '.join(fields)}, where fastarat reads one of images and a whole 'label'")
    return images[0], labels[0], "split" if fields.get("split") == INT else None


def _names(path: Path, splits: np.ndarray) -> tuple[str, ...]:
    """Images are counted from 0 in each split."""
    if (splits >> 1).any():
        wrong = int(np.flatnonzero(splits >> 1)[0])
        raise Damaged(f"is damaged (the split of image {wrong} is {splits[wrong]}, not 0 or 1)")
    ranks = np.where(splits == 0, np.cumsum(splits == 0), np.cumsum(splits == 1)) - 1
    words = ("train", "test")
    pairs = zip(splits.tolist(), ranks.tolist(), strict=True)
    return tuple(f"{words[split]} image {rank} of {path.name}" for split, rank in pairs)


def _entries(path: Path, count: int, table: int) -> np.ndarray:
    """The table of where images are, in the order of the images (FFCV writes it in the order of the places)."""
    entries = np.fromfile(path, ENTRY, count, offset=table)
    order = np.argsort(entries["image"], kind="stable")
    if not np.array_equal(entries["image"][order], np.arange(count, dtype=np.uint64)):
        raise Damaged("is damaged (its table does not name each image once)")
    return entries[order]


def _require_places(
    entries: np.ndarray, pointers: np.ndarray, begin: int, end: int, page: int, names: tuple[str, ...]
) -> None:
    """Raise unless every image lies by itself, in one page, between the bytes `begin` and `end`."""
    starts, lengths = entries["start"], entries["length"]
    # Unsigned numbers near their end would wrap around in a sum, so each is compared by itself first.
    inside = (starts >= begin) & (starts < end) & (lengths > 0)
    inside &= lengths <= np.uint64(end) - np.minimum(starts, np.uint64(end))
    _require(inside & (starts == pointers), names, "lies outside of the pages")
    last = starts + lengths - np.uint64(1)
    _require(starts // np.uint64(page) == last // np.uint64(page), names, "crosses a page's end")
    order = np.argsort(starts)
    apart = np.ones(len(starts), bool)
    apart[order[1:]] = last[order[:-1]] < starts[order[1:]]
    _require(apart, names, "overlaps another image")


def _require_images(stored: np.ndarray, lengths: np.ndarray, names: tuple[str, ...]) -> None:
    area = stored["width"].astype(np.uint64) * stored["height"]
    _require(area > 0, names, "has no pixels")
    _require(np.isin(stored["mode"], (JPEG, RAW)), names, "is neither raw nor JPEG")
    _require((stored["mode"] != RAW) | (lengths == 3 * area), names, "has more or fewer bytes than pixels")


def _require(right: np.ndarray, names: tuple[str, ...], problem: str) -> None:
    if not right.all():
        raise Damaged(f"is damaged ({names[int(np.flatnonzero(~right)[0])]} {problem})")
