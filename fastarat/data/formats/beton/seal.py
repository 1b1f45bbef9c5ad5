"""OUT.beton.json: what a .beton cannot hold itself, and the checksums that tell whether it is as it was written."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastarat.common import console
from fastarat.common.errors import UserError
from fastarat.common.json_files import MOST_JSON_BYTES, read_sealed
from fastarat.common.typed import build
from fastarat.data.images.dataset import MAX_VALUE, MOST_CLASSES

FORMAT_VERSION = 2
BLOCK = 1 << 22
REBUILD = "build it again ('fastarat data build SRC OUT.beton')"


@dataclass(frozen=True)
class Seal:
    """What is known about a .beton that fastarat has written."""

    name: str
    classes: tuple[str, ...]
    max_value: int
    counts: dict[str, int]
    """images of 'train' and 'test'"""
    class_counts: dict[str, tuple[int, ...]]
    source: str
    """what it was built from"""
    mode: str
    longest_side: int | None
    quality: int
    bytes: int
    sha256: str
    """of the whole .beton, 64 hex digits"""
    crc32: str
    """of each image's bytes, 8 hex digits each, in the order of the file"""
    version: int = FORMAT_VERSION

    def checksums(self) -> np.ndarray:
        """`crc32` as uint32 [N]."""
        return np.frombuffer(bytes.fromhex(self.crc32), ">u4").astype(np.uint32)


def place_of(path: Path) -> Path:
    """Where the seal of the .beton `path` lies."""
    return path.with_name(path.name + ".json")


def read(path: Path) -> Seal | None:
    """The seal of the .beton `path`; None if it has none. Raises `UserError` if it is damaged, or of another file."""
    place = place_of(path)
    if not os.path.lexists(place):
        return None
    size, again = path.stat().st_size, f"copy it again, or {REBUILD}"
    # Images are larger than their checksums.
    values = read_sealed(place, FORMAT_VERSION, fix=again, most_bytes=max(size, MOST_JSON_BYTES))
    try:
        seal: Seal = build(Seal, values, str(place))
        fits = seal.max_value == MAX_VALUE and 1 <= len(seal.classes) <= MOST_CLASSES
        if not fits or len(seal.checksums()) != sum(seal.counts.values()):
            raise ValueError("numbers of pixels, classes or images")
    except ValueError as error:
        raise UserError(f"{place} cannot be read (its parts do not fit together): {again}") from error
    if size != seal.bytes:
        raise UserError(f"{path} has {size} bytes instead of {seal.bytes}: {again}")
    return seal


def sha256_of(path: Path) -> str:
    """SHA-256 of the whole file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file, console.progress(f"Checking {path.name}", path.stat().st_size) as advance:
        while block := file.read(BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
