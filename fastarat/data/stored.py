"""Data sets whose images stay as they are stored: folders, tars, shards, .beton files and prepared sets."""

from dataclasses import dataclass
from typing import Literal

from fastarat.common import console
from fastarat.common.advice import command
from fastarat.common.errors import UserError
from fastarat.common.problems import require_none
from fastarat.data.formats import prepared, shards
from fastarat.data.formats.archives import stem
from fastarat.data.formats.beton import file as beton
from fastarat.data.formats.find import Source
from fastarat.data.formats.index import index_images
from fastarat.data.formats.shard_index import indexed_once
from fastarat.data.images.cache import data_root
from fastarat.data.images.dataset import Dataset, from_arrays
from fastarat.data.images.decoded import decoded_once
from fastarat.data.images.stored import StoredImages, fingerprint_of
from fastarat.data.images.whole_sets import scan, without

MAX_VALUE = 255
Corrupt = Literal["fatal", "skip"]


@dataclass(frozen=True)
class StoredData:
    """Both splits of a data set, nothing of it decoded."""

    name: str
    train: StoredImages
    test: StoredImages
    classes: tuple[str, ...]
    num_skipped: int = 0
    """images left out because they cannot be decoded"""

    @property
    def fingerprint(self) -> str:
        """See `fingerprint_of`: over both splits."""
        return fingerprint_of(self.train, self.test)


def open_stored(source: Source, corrupt: Corrupt = "fatal") -> StoredData:
    """The images of `source`, each of which can be decoded.

    A .beton is checked against its checksum; of other files every image is decoded once, which is remembered. One that
    cannot be is an error that names it, or (`corrupt` skip) is named and left out. Raises `UserError` for what cannot
    be read image by image.
    """
    if source.kind == "beton":
        return _beton(source)
    if source.kind == "prepared":
        train, test, classes = prepared.stored(source.path)
        return StoredData(source.path.name, train, test, classes)
    if source.kind not in ("images", "shards"):
        raise UserError(
            f"the images of this data set are not in files of their own: make them so, "
            f"{command('data', 'prepare', source.name, 'OUT')}, or use the resident loader"
        )
    if source.kind == "shards":
        train, test, classes = indexed_once(
            source.path, shards.files(source.path), data_root() / "scanned", shards.index
        )
    else:
        train, test, classes = index_images(source.path)
    return _scanned(source, train, test, classes, corrupt)


def _beton(source: Source) -> StoredData:
    file = beton.read(source.path, data_root() / "checked")
    return StoredData(file.name, file.train, file.test, file.classes)


def _scanned(
    source: Source, train: StoredImages, test: StoredImages, classes: tuple[str, ...], corrupt: Corrupt
) -> StoredData:
    name = stem(source.path)
    found = [
        scan(images, data_root() / "scanned", f"{name}, {split}")
        for images, split in ((train, "train"), (test, "test"))
    ]
    problems = [line for part in found for line in part.problems.values()]
    if corrupt == "fatal":
        require_none(source.path, _with_a_way_out(problems))
    for line in problems:
        console.notice(f"left out: {line}")
    train, test = (without(images, part) for images, part in zip((train, test), found, strict=True))
    if not len(train):
        raise UserError(f"{source.path}: no training image can be decoded; 'fastarat data check' says why of each")
    return StoredData(name, train, test, classes, len(problems))


def _with_a_way_out(problems: list[str]) -> list[str]:
    return (
        [*problems[:-1], f"{problems[-1]}; 'fastarat train --loading.corrupt skip' leaves such images out"]
        if problems
        else []
    )


def decoded(stored: StoredData, size: int | None) -> Dataset:
    """All of it decoded, at `size` x `size` pixels or as it is stored. Raises `UserError` if sizes differ."""
    parts = {"train": stored.train, "test": stored.test}
    shape = (size, size) if size else common_size(stored.name, *parts.values())
    train, test = (
        decoded_once(part, shape, 1.0, data_root() / "decoded", f"{stored.name}-{split}")
        for split, part in parts.items()
    )
    return from_arrays(stored.name, train, test, stored.classes, MAX_VALUE)


def streamed(stored: StoredData, size: int | None, share: float) -> Dataset:
    """Training images as they are stored, and test images decoded, all of one size: of each image the middle, `share`
    of its shorter side, at `size` x `size` pixels; or as they are stored."""
    shape = (size, size) if size else common_size(stored.name, stored.train, stored.test)
    return _with_decoded_test(stored, shape, share)


def for_evaluation(stored: StoredData, image_size: tuple[int, int], share: float) -> Dataset:
    """As `streamed`, for images of `image_size` (height, width)."""
    return _with_decoded_test(stored, (image_size[1], image_size[0]), share)


def _with_decoded_test(stored: StoredData, shape: tuple[int, int], share: float) -> Dataset:
    test = decoded_once(stored.test, shape, share, data_root() / "decoded", f"{stored.name}-test")
    return Dataset(stored.name, stored.train, test, stored.classes, MAX_VALUE, stored.fingerprint)


def common_size(name: str, *parts: StoredImages) -> tuple[int, int]:
    """The (width, height) that all images have. Raises `UserError` where they differ."""
    sizes = {part.common_size() for part in parts if len(part)}
    if len(sizes) != 1 or None in sizes:
        raise UserError(f"{name}: images differ in size: choose one, such as --size 128")
    (size,) = sizes
    assert size is not None
    return size
