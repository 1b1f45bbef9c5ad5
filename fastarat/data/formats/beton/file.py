"""A .beton, FFCV's file of images, opened or checked: everything that native code would trust is compared before."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastarat.common import console
from fastarat.common.console import command
from fastarat.common.errors import UserError
from fastarat.common.files import require_file
from fastarat.data.formats.beton import seal as beton_seal
from fastarat.data.formats.beton import structure
from fastarat.data.formats.beton.seal import REBUILD, Seal
from fastarat.data.formats.beton.structure import JPEG_END, JPEG_START, Layout
from fastarat.data.images.cache import kept, key_of
from fastarat.data.images.copies import Contents, digest_of
from fastarat.data.images.dataset import (
    MOST_CLASSES,
    SPLITS,
    Dataset,
    class_problems,
    described,
    from_splits,
    label_problem,
)
from fastarat.data.images.decoding import File, open_image, reason_of
from fastarat.data.images.pool import in_order
from fastarat.data.images.stored import StoredImages


def read(path: Path) -> Dataset:
    """The images in the .beton at `path`; of a file of FFCV's own the test split may be empty.

    Its checksum is compared with its seal, which is remembered until the file changes. A file of FFCV's own has no
    seal: its structure is checked, and classes are numbered. Raises `UserError` that says what is wrong with the file.
    """
    layout, seal = examine(path)
    if not seal:
        unsealed = f"{path} has no {beton_seal.place_of(path).name}"
        console.notice(f"{unsealed}: its structure is checked, its contents are not")

    def check() -> dict[str, np.ndarray]:
        if seal:
            _require_checksum(path, seal)
        else:
            _require_jpegs(path, layout)
        return {}

    what = seal.sha256 if seal else "structure"
    kept("checked", path.name, key_of([path], what, str(path.resolve()), path.stat().st_ino), check)
    return opened(path, layout, seal)


def examine(path: Path) -> tuple[Layout, Seal | None]:
    """What the file and its seal say, compared with each other, without a look at the images; raises `UserError`."""
    require_file(path)
    seal = beton_seal.read(path)
    layout = structure.read(path)
    if seal and seal.counts != {split: int((layout.splits == i).sum()) for i, split in enumerate(SPLITS)}:
        raise UserError(f"{path} has other images than {beton_seal.place_of(path).name} says: {REBUILD}")
    if not (layout.splits == 0).any():
        raise UserError(f"{path} has no training images: {REBUILD}")
    if problem := label_problem(layout.labels, len(seal.classes) if seal else MOST_CLASSES):
        raise UserError(f"{path}: {problem}; {REBUILD}")
    return layout, seal


def opened(path: Path, layout: Layout, seal: Seal | None) -> Dataset:
    """The data set of a file that was examined."""
    images = everything(path, layout, seal)
    train, test = (images.take(np.flatnonzero(layout.splits == split)) for split in range(2))
    if seal:
        return from_splits(seal.name, train, test, seal.classes)
    return from_splits(path.stem, train, test, tuple(map(str, range(int(layout.labels.max()) + 1))))


def jpeg_problem(content: bytes, size: Sequence[int], *, decode: bool) -> str | None:
    """What is wrong with a stored JPEG that should have `size` (width, height); None if nothing is."""
    if not content.startswith(JPEG_START) or not content.endswith(JPEG_END):
        return "is not a whole JPEG"
    try:
        with open_image(File("", content)) as image:
            if image.size != tuple(size) or image.mode not in ("RGB", "L"):
                return f"is a JPEG of {image.width}x{image.height} {image.mode}, not {size[0]}x{size[1]} RGB"
            if decode:
                image.load()
    except Exception as error:  # Pillow raises almost any type for a damaged file
        return f"cannot be decoded ({reason_of(content, error)})"
    return None


def everything(path: Path, layout: Layout, seal: Seal | None = None) -> StoredImages:
    """The images of both splits in the order of the file; with a seal each is compared with it when it is read."""
    files = np.zeros(len(layout.labels), np.int32)
    values = (layout.starts, layout.lengths, layout.raw, layout.sizes, layout.labels, layout.names)
    return StoredImages((str(path),), files, *values, crc32=seal.checksums().astype(np.int64) if seal else None)


def _require_checksum(path: Path, seal: Seal) -> None:
    if beton_seal.sha256_of(path) != seal.sha256:
        raise UserError(
            f"{path} has changed since it was written (SHA-256 differs): {command('data', 'check', path)} names the "
            f"bad images; copy it again, or {REBUILD}"
        )


def _require_jpegs(path: Path, layout: Layout) -> None:
    images = everything(path, layout)
    with console.progress(f"Checking {path.name}", len(images)) as advance:
        for i in range(len(images)):
            if not images.raw[i] and (problem := jpeg_problem(images.read(i), images.sizes[i], decode=False)):
                raise UserError(f"{path} is damaged ({images.names[i]} {problem}): {REBUILD}")
            advance(1)


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
    images, contents = everything(path, layout), Contents()
    checksums = seal.checksums().tolist() if seal else [None] * len(images)
    stored = zip(_noted(images, layout, contents), images.sizes.tolist(), checksums, strict=True)
    with console.progress(f"Decoding {path.name}", len(images)) as advance:
        found = []
        for problem in in_order(_problem, stored, len(images)):
            found += [problem] if problem else []
            advance(1)
    if seal and not found and beton_seal.sha256_of(path) != seal.sha256:
        found.append(f"{path} has changed outside of its images (header, labels or table): {REBUILD}")
    found += class_problems(len(seal.classes) if seal else int(layout.labels.max()) + 1)
    return found + contents.problems()


def _noted(images: StoredImages, layout: Layout, contents: Contents) -> Iterator[File]:
    """The images of both splits, of which `contents` takes note on their way."""
    for i, split in enumerate(layout.splits.tolist()):
        file = images.file(i)
        contents.add(SPLITS[split], file.name, int(images.labels[i]), digest_of(file.content))
        yield file


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


def _problem(stored: tuple[File, list[int], int | None]) -> str | None:
    """What is wrong with an image of this size and checksum; of pixels the size was compared with their number."""
    file, size, crc32 = stored
    if crc32 is not None and zlib.crc32(file.content) != crc32:
        return f"{file.name} has changed since it was written (checksum differs)"
    problem = None if file.raw_size else jpeg_problem(file.content, size, decode=True)
    return f"{file.name} {problem}" if problem else None
