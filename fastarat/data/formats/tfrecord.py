"""Where the images of a TFRecord file lie: its framing, and as much of tf.train.Example as that takes.

A record is its length (uint64), a checksum of these eight bytes (uint32), the data, and a checksum of the data, all
little-endian; the data is a protocol buffer. Both checksums are verified.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastarat.common.errors import UserError
from fastarat.common.files import require_file
from fastarat.data.formats.archives import LARGEST
from fastarat.data.formats.crc32c import crc32c
from fastarat.data.formats.tar import Plain
from fastarat.data.images.damaged import Damaged, readable

ENCODED = (b"image/encoded", b"image")
LABEL = (b"image/class/label", b"label")
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


class Example(NamedTuple):
    """What one record has; None for what is missing."""

    start: int
    """its first byte in the file"""
    image: slice | None
    """the bytes of the encoded image in the file"""
    label: int | None


class _Part(NamedTuple):
    """A record's data, or a part of it, and where in the file the data begin."""

    data: bytes
    place: int
    start: int
    stop: int

    def damaged(self, reason: str, at: int) -> Damaged:
        return _damaged(reason, self.place + at)


def _damaged(reason: str, at: int) -> Damaged:
    return Damaged(f"{reason} at byte {at:,}")


def records(path: Path) -> Iterator[Example]:
    """Every record. Raises `UserError` naming file and byte where the file is damaged or ends early."""
    require_file(path)
    with readable(path), path.open("rb") as file:
        size = path.stat().st_size
        if not size:
            raise UserError(f"{path} is empty: copy or download it again")
        if file.read(2) == b"\x1f\x8b":
            raise UserError(f"{path} is compressed, so that images in it cannot be reached: unpack it with gzip")
        content = Plain(file)
        while content.at < size:
            at = content.at
            yield _record(at, _data(content, size))


def _data(file: Plain, size: int) -> _Part:
    at = file.at
    if at + _HEADER.size > size:
        raise _damaged("half a record", at)
    header = file.take(_HEADER.size)
    length, checksum = _HEADER.unpack(header)
    if masked_crc32c(header[:8]) != checksum:
        raise _damaged("a record's length has a wrong checksum", at)
    if length > size - file.at - _CHECKSUM.size:
        raise _damaged(f"a record of {length:,} bytes is longer than the file", at)
    if length > LARGEST:
        raise _damaged(f"a record of {length:,} bytes, more than any image,", at)
    data = _Part(file.take(length), at + _HEADER.size, 0, length)
    if masked_crc32c(data.data) != _CHECKSUM.unpack(file.take(_CHECKSUM.size))[0]:
        raise _damaged("a record's data has a wrong checksum", at)
    return data


def _record(at: int, data: _Part) -> Example:
    """Example = {1: Features = {1: {1: key, 2: Feature}, …}}; Feature = {1: bytes, 3: numbers}, each {1: values}."""
    found: dict[bytes, _Part] = {}
    for features in _parts(data, 1):
        for entry in _parts(features, 1):
            keys, values = _parts(entry, 1), _parts(entry, 2)
            if keys and values:
                found[keys[-1].data[keys[-1].start : keys[-1].stop]] = values[-1]
    image = _first(found, ENCODED, 1)
    label = _first(found, LABEL, 3)
    place = slice(data.place + image.start, data.place + image.stop) if image else None
    return Example(at, place, _number(label) if label else None)


def _first(features: dict[bytes, _Part], keys: tuple[bytes, ...], kind: int) -> _Part | None:
    """The first value of this kind in the feature that has one of `keys`."""
    feature = next((features[key] for key in keys if key in features), None)
    lists = _parts(feature, kind) if feature else []
    return next(iter(_parts(lists[-1], 1)), None) if lists else None


def _number(packed: _Part) -> int | None:
    """The first of int64 values; negative ones have all of their 64 bits written out."""
    if packed.start == packed.stop:
        return None
    value, _ = _varint(packed, packed.start)
    return value - (1 << 64 if value >> 63 else 0)


def _parts(message: _Part, wanted: int) -> list[_Part]:
    """Where the values of the field `wanted` lie, in a message of a protocol buffer."""
    at, found = message.start, []
    while at < message.stop:
        tag, at = _varint(message, at)
        start, at = _value(message, at, tag & 7)
        if at > message.stop:
            raise message.damaged("a value is longer than what it is in", start)
        if tag >> 3 == wanted:
            found.append(message._replace(start=start, stop=at))
    return found


def _value(message: _Part, at: int, wire_type: int) -> tuple[int, int]:
    """First and last + 1 byte of the value that begins at `at`."""
    if wire_type == 2:
        length, at = _varint(message, at)
        return at, at + length
    if wire_type == 0:
        return at, _varint(message, at)[1]
    if wire_type in (1, 5):
        return at, at + (8 if wire_type == 1 else 4)
    raise message.damaged(f"no protocol buffer (wire type {wire_type})", at)


def _varint(message: _Part, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= message.stop:
            raise message.damaged("a number has no end", at)
        byte = message.data[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise message.damaged("a number of more than 64 bits", at)


def masked_crc32c(content: bytes) -> int:
    """The checksum of TFRecords: CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
