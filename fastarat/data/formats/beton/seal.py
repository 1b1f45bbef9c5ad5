"""OUT.beton.json: what a .beton cannot hold itself, and the checksums that tell whether it is as it was written."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastarat.common import console
from fastarat.common.errors import UserError
from fastarat.common.files import MOST_JSON_BYTES, checksum_of, read_json
from fastarat.data.images.dataset import MOST_CLASSES

FORMAT_VERSION = 2
BLOCK = 1 << 22
MAX_VALUE = 255
REBUILD = "build it again ('fastarat data build SRC OUT.beton')"


@dataclass(frozen=True)
class Seal:
    """What is known about a .beton that fastarat has written."""

    name: str
    classes: list[str]
    max_value: int
    counts: dict[str, int]
    """images of 'train' and 'test'"""
    class_counts: dict[str, list[int]]
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


def write(place: Path, seal: Seal) -> None:
    """Write `seal` as JSON to `place`, with a checksum of its own."""
    values = asdict(seal)
    values["checksum"] = checksum_of(values)
    place.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> Seal | None:
    """The seal of the .beton `path`; None if it has none. Raises `UserError` if it is damaged, or of another file."""
    place = place_of(path)
    if not os.path.lexists(place):
        return None
    size = path.stat().st_size
    try:
        values = read_json(place, max(size, MOST_JSON_BYTES))  # images are larger than their checksums
    except UserError as error:
        raise UserError(f"{error}: copy it again, or {REBUILD}") from error
    try:
        seal = _parsed(place, values)
    except (ValueError, TypeError) as error:
        if isinstance(error, _OtherVersion):
            raise UserError(str(error)) from error
        raise UserError(f"{place} cannot be read ({error}): copy it again, or {REBUILD}") from error
    if size != seal.bytes:
        raise UserError(f"{path} has {size} bytes instead of {seal.bytes}: copy it again, or {REBUILD}")
    return seal


class _OtherVersion(ValueError):
    """A seal that this version does not read."""


def _parsed(place: Path, values: Any) -> Seal:
    """Raises `ValueError` or `TypeError` for what is no seal, or not as it was written."""
    if not isinstance(values, dict) or type(values.get("version")) is not int:
        raise ValueError("it is no list of checksums that fastarat wrote")
    if values["version"] != FORMAT_VERSION:
        raise _OtherVersion(
            f"{place} has format {values['version']}, and this fastarat reads {FORMAT_VERSION}: use the version that "
            f"wrote it, or {REBUILD}."
        )
    if values.pop("checksum", None) != checksum_of(values):
        raise ValueError("it has changed since it was written")
    seal = Seal(**values)
    if not _fits(seal):
        raise ValueError("its parts do not fit together")
    return seal


def _fits(seal: Seal) -> bool:
    """Whether every value that is used has its type and bounds."""
    return (
        all(isinstance(text, str) for text in (seal.name, seal.source, seal.sha256, seal.crc32))
        and all(type(number) is int for number in (seal.bytes, seal.max_value))
        and seal.max_value == MAX_VALUE
        and isinstance(seal.classes, list)
        and 1 <= len(seal.classes) <= MOST_CLASSES
        and all(isinstance(name, str) for name in seal.classes)
        and isinstance(seal.counts, dict)
        and all(type(count) is int for count in seal.counts.values())
        and len(seal.checksums()) == sum(seal.counts.values())
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of the whole file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file, console.progress(f"Checking {path.name}", path.stat().st_size) as advance:
        while block := file.read(BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
