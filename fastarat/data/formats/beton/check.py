"""What is in a .beton, and every image of it that is no longer what was written."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastarat.common import console
from fastarat.common.errors import UserError
from fastarat.data.formats.beton import seal as beton_seal
from fastarat.data.formats.beton.file import everything, examine, jpeg_problem, opened
from fastarat.data.formats.beton.seal import REBUILD, Seal
from fastarat.data.images.dataset import described
from fastarat.data.images.pool import in_order
from fastarat.data.images.stored import StoredImages


def problems(path: Path) -> list[str]:
    """Everything wrong with the .beton at `path`, a line each; every image is read and decoded.

    Raises `WorkError` if it cannot be read or a process dies.
    """
    try:
        layout, seal = examine(path)
    except UserError as error:
        return [str(error)]
    if seal is None:
        console.notice(f"{path} has no checksums: an image that was changed and can be decoded is not found")
    images = everything(path, layout)
    with console.progress(f"Decoding {path.name}", len(images)) as advance:
        found = []
        for problem in in_order(_problem, _stored(images, seal), len(images)):
            found += [problem] if problem else []
            advance(1)
    if seal and not found and beton_seal.sha256_of(path) != seal.sha256:
        found.append(f"{path} has changed outside of its images (header, labels or table): {REBUILD}")
    return found


def info(path: Path) -> dict[str, Any]:
    """What the .beton at `path` holds, as plain values for a table or JSON.

    `sizes`: least, median and largest (width, height); `stored`: images as pixels and as JPEG; `bytes`: of the file.
    Contents are not checked. Raises `UserError` for a file that cannot be used.
    """
    layout, seal = examine(path)
    data = opened(path, layout, seal)
    return {
        **described(data),
        "stored": {"raw": int(layout.raw.sum()), "jpeg": int((~layout.raw).sum())},
        "bytes": path.stat().st_size,
        "source": seal.source if seal else None,
        "fingerprint": seal.sha256 if seal else data.fingerprint,
    }


class _Stored(NamedTuple):
    """One image to check."""

    name: str
    content: bytes
    jpeg_size: tuple[int, int] | None
    """None for pixels, whose number of bytes was compared with their size already"""
    crc32: int | None


def _stored(images: StoredImages, seal: Seal | None) -> Iterator[_Stored]:
    checksums = seal.checksums().tolist() if seal else [None] * len(images)
    for i, crc32 in enumerate(checksums):
        size = None if images.raw[i] else (int(images.sizes[i, 0]), int(images.sizes[i, 1]))
        yield _Stored(images.names[i], images.read(i), size, crc32)


def _problem(image: _Stored) -> str | None:
    if image.crc32 is not None and zlib.crc32(image.content) != image.crc32:
        return f"{image.name} has changed since it was written (checksum differs)"
    problem = jpeg_problem(image.content, image.jpeg_size, decode=True) if image.jpeg_size else None
    return f"{image.name} {problem}" if problem else None
