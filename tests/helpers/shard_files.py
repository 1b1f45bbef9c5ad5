"""Writes WebDataset tars and TFRecords by hand, as their formats are published."""

import io
import struct
import tarfile
from pathlib import Path


def tar_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(images: list[tuple[bytes, int]], kind: str = "jpg") -> list[tuple[str, bytes]]:
    """Members of a WebDataset shard: `00000.jpg`, `00000.cls`, …"""
    return [
        member
        for i, (content, label) in enumerate(images)
        for member in ((f"{i:05}.{kind}", content), (f"{i:05}.cls", str(label).encode()))
    ]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def part(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(value: bytes | int | float, packed: bool = True) -> bytes:
    if isinstance(value, bytes):
        return part(1, part(1, value))
    if isinstance(value, float):
        return part(2, part(1, struct.pack("<f", value)))
    return part(3, part(1, varint(value)) if packed else varint(1 << 3) + varint(value))


def example(packed: bool = True, **features: bytes | int | float) -> bytes:
    """A tf.train.Example; `__` in a name stands for `/`."""
    entries = b"".join(
        part(1, part(1, name.replace("__", "/").encode()) + part(2, feature(value, packed)))
        for name, value in features.items()
    )
    return part(1, entries)


def crc32c(content: bytes) -> int:
    """Bit by bit, from the polynomial."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord(path: Path, examples: list[bytes]) -> Path:
    """A TFRecord file of these records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = [struct.pack("<Q", len(data)) for data in examples]
    path.write_bytes(
        b"".join(length + masked(length) + data + masked(data) for length, data in zip(lengths, examples, strict=True))
    )
    return path
