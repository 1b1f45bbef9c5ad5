"""Images as they are stored, each read only when it is needed: what does not fit into memory decoded."""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastarat.common.errors import WorkError
from fastarat.data.images.cache import key_of
from fastarat.data.images.decoding import File

STORED = "stored-"
"""What the fingerprint of images that are not decoded begins with."""


class Span(NamedTuple):
    """Where the bytes of an image lie."""

    path: str
    offset: int
    length: int
    name: str
    crc32: int | None = None
    """their checksum, where it is known"""

    def read(self) -> bytes:
        """All of them. Raises `WorkError` if they are gone, or have changed."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                content = b"".join(self._parts(descriptor))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise WorkError(f"cannot read image {self.name}: {error.strerror}; is the data still there?") from error
        if len(content) < self.length:
            raise WorkError(f"image {self.name} ends early: the data has changed since it was checked")
        if self.crc32 is not None and zlib.crc32(content) != self.crc32:
            raise changed(self.name, self.path)
        return content

    def _parts(self, descriptor: int) -> Iterator[bytes]:
        """The bytes, up to the file's end; a network's disk may give less at a time."""
        got = 0
        while got < self.length and (part := os.pread(descriptor, self.length - got, self.offset + got)):
            got += len(part)
            yield part


def changed(name: str, path: str) -> WorkError:
    """The error for an image whose bytes are no longer those that were written."""
    return WorkError(
        f"{name} has changed since it was written (checksum differs): 'fastarat data check' names every one in "
        f"{path}; copy or build it again"
    )


class Sample(NamedTuple):
    """An image file in a file, before it was looked into."""

    name: str
    offset: int
    length: int
    label: int


@dataclass(frozen=True)
class StoredImages:
    """One split of images in files: a JPEG or PNG file each, or many in a tar, a TFRecord or a .beton."""

    paths: tuple[str, ...]
    """the files that hold the images"""
    files: np.ndarray
    """int32 [N]: which of `paths` an image is in"""
    offsets: np.ndarray
    """int64 [N]: its first byte there"""
    lengths: np.ndarray
    """int64 [N]: its number of bytes"""
    raw: np.ndarray
    """bool [N]: whether these are pixels [H, W, 3], else a JPEG or PNG file"""
    sizes: np.ndarray
    """int32 [N, 2]: (width, height) in pixels"""
    labels: np.ndarray
    """int64 [N], each in 0 … number of classes − 1"""
    names: tuple[str, ...]
    """what messages call each image"""
    crc32: np.ndarray | None = None
    """int64 [N]: the CRC-32 of each image's bytes, compared whenever it is read; None where nobody wrote them down"""

    @classmethod
    def of_samples(cls, paths: Sequence[Path], files: np.ndarray, samples: Sequence[Sample]) -> "StoredImages":
        """JPEG and PNG files, each in the file `paths[files[i]]`; their sizes are 0, since nobody knows them yet."""
        offsets, lengths, labels = (
            np.array([getattr(sample, name) for sample in samples], np.int64) for name in ("offset", "length", "label")
        )
        raw, sizes = np.zeros(len(samples), bool), np.zeros((len(samples), 2), np.int32)
        names = tuple(sample.name for sample in samples)
        return cls(tuple(map(str, paths)), files.astype(np.int32), offsets, lengths, raw, sizes, labels, names)

    def __len__(self) -> int:
        return len(self.labels)

    def span(self, i: int) -> Span:
        """Where image `i` lies."""
        crc32 = None if self.crc32 is None else int(self.crc32[i])
        return Span(self.paths[self.files[i]], int(self.offsets[i]), int(self.lengths[i]), self.names[i], crc32)

    def read(self, i: int) -> bytes:
        """The stored bytes of image `i`. Raises `WorkError` if they are gone, or have changed."""
        return self.span(i).read()

    def file(self, i: int) -> File:
        """Image `i` for PIL. Raises as `read` does."""
        width, height = map(int, self.sizes[i])
        return File(self.names[i], self.read(i), (width, height) if self.raw[i] else None)

    def take(self, index: np.ndarray) -> "StoredImages":
        """The images `index` (int64 [M]), in this order."""
        values: dict[str, Any] = {name: getattr(self, name)[index] for name in PER_IMAGE}
        crc32 = None if self.crc32 is None else self.crc32[index]
        return replace(self, **values, names=tuple(self.names[i] for i in index), crc32=crc32)


PER_IMAGE = tuple(field.name for field in fields(StoredImages) if field.name not in ("paths", "names", "crc32"))


def storage_key(images: StoredImages, *settings: object) -> str:
    """The `key_of` these images where they lie: their files, and their places in them."""
    return key_of(map(Path, images.paths), *settings, arrays=(images.files, images.offsets, images.lengths))
