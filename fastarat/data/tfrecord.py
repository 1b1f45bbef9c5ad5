"""Where the images of a TFRecord file lie: its framing, and as much of tf.train.Example as that takes.

A record is its length (uint64), a checksum of these eight bytes (uint32), the data, and a checksum of the data, all
little-endian; the data is a protocol buffer. Both checksums are verified.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastarat.data.crc32c import crc32c
from fastarat.errors import UserError

ENCODED = (b"image/encoded", b"image")
LABEL = (b"image/class/label", b"label")
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


class Record(NamedTuple):
    """What one record has; None for what is missing."""

    start: int
    """its first byte in the file"""
    image: slice | None
    """the bytes of the encoded image in the file"""
    label: int | None


class _Damaged(Exception):
    """Something at a byte of the file is not as it must be."""

    def __init__(self, at: int, reason: str):
        super().__init__(f"{reason} at byte {at:,}")


def records(path: Path) -> Iterator[Record]:
    """Every record. Raises `UserError` naming file and byte where the file is damaged or ends early."""
    try:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty: copy or download it again.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:2] == b"\x1f\x8b":
                raise UserError(f"{path} is compressed, so that images in it cannot be reached: unpack it with gzip")
            at = 0
            while at < len(data):
                end = _data_end(data, at)
                yield _record(data, at, end)
                at = end + _CHECKSUM.size
    except _Damaged as e:
        raise UserError(f"{path} is damaged or cut short ({e}): copy or download it again.") from None
    except OSError as e:
        raise UserError(f"Cannot read {path}: {e.strerror or e}.") from e


def _data_end(data: mmap.mmap, at: int) -> int:
    if at + _HEADER.size > len(data):
        raise _Damaged(at, "half a record")
    length, checksum = _HEADER.unpack_from(data, at)
    if masked_crc32c(data[at : at + 8]) != checksum:
        raise _Damaged(at, "a record's length has a wrong checksum")
    end = at + _HEADER.size + length
    if end + _CHECKSUM.size > len(data):
        raise _Damaged(at, f"a record of {length:,} bytes is longer than the file")
    if masked_crc32c(data[at + _HEADER.size : end]) != _CHECKSUM.unpack_from(data, end)[0]:
        raise _Damaged(at, "a record's data has a wrong checksum")
    return end


def _record(data: mmap.mmap, at: int, end: int) -> Record:
    """Example = {1: Features = {1: {1: key, 2: Feature}, …}}; Feature = {1: bytes, 3: numbers}, each {1: values}."""
    found: dict[bytes, slice] = {}
    for features in _parts(data, slice(at + _HEADER.size, end), 1):
        for entry in _parts(data, features, 1):
            keys, values = _parts(data, entry, 1), _parts(data, entry, 2)
            if keys and values:
                found[data[keys[-1]]] = values[-1]
    image = next((found[key] for key in ENCODED if key in found), None)
    label = next((found[key] for key in LABEL if key in found), None)
    image = next(iter(_inside(data, image, 1)), None)
    label = next(iter(_inside(data, label, 3)), None)
    return Record(at, image, label if label is None else _number(data, label))


def _inside(data: mmap.mmap, feature: slice | None, kind: int) -> list[slice]:
    lists = _parts(data, feature, kind) if feature else []
    return _parts(data, lists[-1], 1) if lists else []


def _number(data: mmap.mmap, packed: slice) -> int | None:
    """The first of int64 values; negative ones have all of their 64 bits written out."""
    if packed.start == packed.stop:
        return None
    value, _ = _varint(data, packed.start, packed.stop)
    return value - (1 << 64 if value >> 63 else 0)


def _parts(data: mmap.mmap, message: slice, wanted: int) -> list[slice]:
    """Where the values of the field `wanted` lie, in a message of a protocol buffer."""
    at, found = message.start, []
    while at < message.stop:
        tag, at = _varint(data, at, message.stop)
        start, at = _value(data, at, tag & 7, message.stop)
        if at > message.stop:
            raise _Damaged(start, "a value is longer than what it is in")
        if tag >> 3 == wanted:
            found.append(slice(start, at))
    return found


def _value(data: mmap.mmap, at: int, wire_type: int, end: int) -> tuple[int, int]:
    """First and last + 1 byte of the value that begins at `at`."""
    if wire_type == 2:
        length, at = _varint(data, at, end)
        return at, at + length
    if wire_type == 0:
        return at, _varint(data, at, end)[1]
    if wire_type in (1, 5):
        return at, at + (8 if wire_type == 1 else 4)
    raise _Damaged(at, f"no protocol buffer (wire type {wire_type})")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _Damaged(at, "a number has no end")
        byte = data[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise _Damaged(at, "a number of more than 64 bits")


def masked_crc32c(content: bytes) -> int:
    """The checksum of TFRecords: CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
