"""Writes small data sets to read: images, tars of them, CIFAR archives in the published layout."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastarat.data.formats import cifar
from fastarat.data.images.stored import StoredImages


def jpeg(seed: int, width: int = 12, height: int = 12, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """An encoded image of coloured noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    """What PIL reads of an encoded image: RGB, uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def png_of_16_bits(colours: int, channels: int) -> bytes:
    """A PNG of 4x4 pixels with 16 bits a channel, such as Pillow reads and does not write. `colours`: PNG's kind of
    colours, 0 for grey, 2 for RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = 4 * (b"\0" + 4 * channels * b"\x12\x34")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pack(folder: Path, archive: Path, mode: str, top: str = "") -> Path:
    """A tar archive of what `folder` holds, inside the folder `top`."""
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for path in sorted(folder.rglob("*")):
            tar.add(path, arcname=top + path.relative_to(folder).as_posix(), recursive=False)
    return archive


def cifar_files(name: str, records: int = 20, label: int | None = None) -> dict[str, bytes]:
    """The files of a CIFAR binary archive with `records` records each; `label` replaces every label."""
    archive = cifar.ARCHIVES[name]
    random = np.random.default_rng(0)
    classes = 10 if name == "cifar10" else 100
    files = {archive.classes_file: "\n".join(f"class {i}" for i in range(classes)).encode() + b"\n\n"}
    for file in (*archive.train_files, archive.test_file):
        labels = np.arange(records, dtype=np.uint8)[:, None] % classes
        labels = np.full_like(labels, label) if label is not None else labels
        coarse = np.zeros((records, archive.label_bytes - 1), np.uint8)
        pixels = random.integers(0, 256, (records, cifar.PIXELS), dtype=np.uint8)
        files[file] = np.concatenate([coarse, labels, pixels], axis=1).tobytes()
    return files


def cifar_archive(path: Path, name: str, files: dict[str, bytes]) -> Path:
    """Write `files` as the CIFAR archive `name`."""
    with tarfile.open(path, "w:gz") as tar:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{cifar.ARCHIVES[name].folder}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The error's text, which must be a single line."""
    text = str(error.value)
    assert "\n" not in text
    return text


def encoded(folder: Path, images: dict[str, bytes]) -> StoredImages:
    """Image files written to `folder`; the label of each is its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in images.items():
        (folder / name).write_bytes(content)
    count = len(images)
    return StoredImages(
        tuple(str(folder / name) for name in images),
        np.arange(count, dtype=np.int32),
        np.zeros(count, np.int64),
        np.array([len(content) for content in images.values()], np.int64),
        np.zeros(count, bool),
        np.array([Image.open(io.BytesIO(content)).size for content in images.values()], np.int32),
        np.arange(count, dtype=np.int64),
        tuple(images),
    )
