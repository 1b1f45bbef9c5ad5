"""Every stored image decoded once and what came of it kept: its size, what is wrong with it, or its pixels."""

import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fastarat.common import arrays, console, unfinished
from fastarat.common.console import require_none
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import as_file_name, synchronise
from fastarat.data.images.cache import as_array, data_root, from_array, kept
from fastarat.data.images.damaged import LEAVE_OUT, writable
from fastarat.data.images.dataset import Dataset, Images, fingerprint, from_splits
from fastarat.data.images.decoding import File, decode_all, open_image, reason_of
from fastarat.data.images.pool import in_order
from fastarat.data.images.stored import Span, StoredImages, storage_key

Corrupt = Literal["fatal", "skip"]
BLOCK = 1 << 24


class Scan(NamedTuple):
    """What decoding every image told."""

    sizes: np.ndarray
    """int32 [N, 2]: (width, height); 0 for an image that cannot be decoded"""
    problems: dict[int, str]
    """a line for each image that cannot be decoded, by its place; it begins with the image's name"""


def of_readable_images(dataset: Dataset, source: Path, corrupt: Corrupt) -> Dataset:
    """A data set with the sizes of its images, every one of which was decoded once; which is remembered.

    One that cannot be is an error that names it, or (`corrupt` skip) is named and left out. Raises `UserError`.
    """
    splits = dataset.stored_splits
    found = {split: scan(part, f"{dataset.name}, {split}") for split, part in splits.items()}
    problems = [line for part in found.values() for line in part.problems.values()]
    if problems and corrupt == "fatal":
        require_none(source, problems, LEAVE_OUT)
    for line in problems:
        console.notice(f"left out: {line}")
    train, test = (
        replace(part, sizes=found[split].sizes).take(np.flatnonzero(found[split].sizes.any(1)))
        for split, part in splits.items()
    )
    if not len(train):
        raise UserError(f"{source}: no training image can be decoded; 'fastarat data check' says why of each")
    counted = replace(dataset, num_skipped=len(problems), fingerprint=fingerprint(train, test))
    return replace(counted, train=train, test=test)


def scan(images: StoredImages, what: str) -> Scan:
    """Decode all of `images` on every core, or take what the same files told before."""

    def make() -> dict[str, np.ndarray]:
        found = scan_all(images, what)
        return {"sizes": found.sizes, "problems": as_array(found.problems)}

    found = kept("scanned", what, storage_key(images, "sizes"), make)
    return Scan(found["sizes"], {int(i): line for i, line in from_array(found["problems"]).items()})


def scan_all(images: StoredImages, what: str) -> Scan:
    """Decode all of `images` on every core."""
    sizes, problems = np.zeros((len(images), 2), np.int32), {}
    spans = (images.span(i) for i in range(len(images)))
    with console.progress(f"Checking {what}", len(images)) as advance:
        for i, found in enumerate(in_order(examine, spans, len(images))):
            if isinstance(found, str):
                problems[i] = found
            else:
                sizes[i] = found
            advance(1)
    return Scan(sizes, problems)


def examine(span: Span) -> tuple[int, int] | str:
    """The size of an image that can be decoded, else what is wrong with it.

    A JPEG is decoded at an eighth of its size, for which all of its bytes are read all the same. Raises `UserError` if
    it cannot be read: that says nothing of the image.
    """
    try:
        content = span.read()
    except WorkError as error:
        raise UserError(str(error)) from error
    try:
        with open_image(File(span.name, content)) as image:
            width, height = image.size
            image.draft("RGB", (max(width // 8, 1), max(height // 8, 1)))
            image.load()
        return width, height
    except Exception as error:  # Pillow raises almost any type for a damaged file
        return f"{span.name} cannot be decoded ({reason_of(content, error)})"


def decoded(stored: Dataset, size: int | None) -> Dataset:
    """All of it decoded, at `size` x `size` pixels or as it is stored. Raises `UserError` if sizes differ."""
    parts = stored.stored_splits
    form = Form((size, size) if size else common_size(stored.name, *parts.values()))
    train, test = (decoded_once(part, form, f"{stored.name}-{split}") for split, part in parts.items())
    return replace(from_splits(stored.name, train, test, stored.classes), num_skipped=stored.num_skipped)


def with_decoded_test(stored: Dataset, size: tuple[int, int] | None, share: float) -> Dataset:
    """Training images as they are stored, and test images decoded, all of one size: of each image the middle, `share`
    of its shorter side, as `size` (width, height); or as they are stored."""
    parts = stored.stored_splits
    form = Form(size or common_size(stored.name, *parts.values()), share)
    return replace(stored, test=decoded_once(parts["test"], form, f"{stored.name}-test"))


def common_size(name: str, *parts: StoredImages) -> tuple[int, int]:
    """The (width, height) that all images have. Raises `UserError` where they differ."""
    if (size := one_size_of(*parts)) is None:
        raise UserError(f"{name}: images differ in size: 'fastarat train --size 128' brings them to one")
    return size


def one_size_of(*parts: StoredImages) -> tuple[int, int] | None:
    """The (width, height) that all images have; None where they differ."""
    sizes = np.concatenate([part.sizes for part in parts])
    if not len(sizes) or (sizes != sizes[0]).any():
        return None
    width, height = sizes[0].tolist()
    return width, height


@dataclass(frozen=True)
class Form:
    """How images of any size are brought to one: the middle of each, `share` of its shorter side, as `size`.

    An image that has the size already keeps its pixels.
    """

    size: tuple[int, int]
    """(width, height)"""
    share: float = 1.0


def decoded_once(images: StoredImages, form: Form, what: str) -> Images:
    """The images in one form: uint8 [N, H, W, 3].

    They are decoded into a file on first use, and from then on are a read-only memory map of it. Its name holds its
    checksum, with which it is compared each time, all of it: that takes a small part of what an evaluation does with
    every image. One that has changed is decoded again. Raises `WorkError` if that cannot be written.
    """
    if not len(images):
        return decoded_now(images, form, what)
    place = data_root() / "decoded" / f"{as_file_name(what)}-{storage_key(images, form.size, form.share)}"
    shape = (len(images), form.size[1], form.size[0], 3)
    pixels = _mapped(place, shape)
    if pixels is None:
        with writable(place.parent, "let FASTARAT_DATA name a folder with room for it"):
            _write(place, shape, images, form, what)
        pixels = _mapped(place, shape)
    if pixels is None:
        raise WorkError(f"what was written to {place.parent} reads otherwise: check the disk")
    return Images(pixels, images.labels)


def decoded_now(images: StoredImages, form: Form, what: str) -> Images:
    """As `decoded_once`, in memory: for a few images."""
    pixels = np.empty((len(images), form.size[1], form.size[0], 3), np.uint8)
    _decode_into(pixels, images, form, what)
    return Images(pixels, images.labels)


def _mapped(place: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The pixels at `place` if they are there as they were written; what is not goes."""
    for path in place.parent.glob(f"{place.name}-????????.npy"):
        try:
            pixels = arrays.open_mapped(path, np.uint8, shape)
            if _checksum(pixels, f"Checking {path.name}") == path.stem[-8:]:
                return pixels
            problem = f"{path} has changed since it was written"
        except UserError as error:
            problem = str(error)
        console.notice(f"{problem}: its images are decoded again")
        with suppress(OSError):  # if it cannot be replaced either, writing says so
            path.unlink()
    return None


def _write(place: Path, shape: tuple[int, ...], images: StoredImages, form: Form, what: str) -> None:
    with unfinished.beside(place) as folder:
        pixels = arrays.allocate(folder / "pixels.npy", np.uint8, shape)
        _decode_into(pixels, images, form, what)
        synchronise(folder / "pixels.npy")
        checksum = _checksum(pixels, f"Keeping {what}")
        (folder / "pixels.npy").rename(place.with_name(f"{place.name}-{checksum}.npy"))


def _checksum(pixels: np.ndarray, doing: str) -> str:
    """CRC-32, 8 hex digits."""
    content, crc = pixels.reshape(-1), 0
    with console.progress(doing, len(content)) as advance:
        for begin in range(0, len(content), BLOCK):
            crc = zlib.crc32(content[begin : begin + BLOCK].data, crc)
            advance(BLOCK)
    return f"{crc:08x}"


def _decode_into(pixels: np.ndarray, images: StoredImages, form: Form, what: str) -> None:
    files = (images.file(i) for i in range(len(images)))
    with console.progress(f"Decoding {what}", len(images)) as advance:
        for row, image in enumerate(decode_all(files, len(images), form.size, resize=True, share=form.share)):
            require_none(what, [image.problem] if image.problem else [])
            pixels[row] = image.pixels
            advance(1)
