"""Every stored image decoded once before training: its size, and what is wrong with it. Kept for the next run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastarat.common import console
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import parse_json, write_atomically
from fastarat.common.npz import read_npz
from fastarat.data.images.decoding import File, open_image, reason_of
from fastarat.data.images.pool import in_order
from fastarat.data.images.stored import Span, StoredImages, storage_key


class Scan(NamedTuple):
    """What decoding every image told."""

    sizes: np.ndarray
    """int32 [N, 2]: (width, height); 0 for an image that cannot be decoded"""
    problems: dict[int, str]
    """a line for each image that cannot be decoded, by its place; it begins with the image's name"""


def scan(images: StoredImages, cache: Path, what: str) -> Scan:
    """Decode all of `images` on every core, or read from the folder `cache` what the same files told before."""
    kept = cache / f"{storage_key(images)}.npz"
    found = _read(kept, len(images))
    if found is None:
        found = scan_all(images, what)
        _keep(found, kept)
    return found


def _read(kept: Path, count: int) -> Scan | None:
    try:
        arrays = read_npz(kept)  # which compares checksums
        problems = {int(i): str(line) for i, line in parse_json(arrays["problems"].tobytes()).items()}
        sizes = arrays["sizes"]
        return Scan(sizes, problems) if sizes.shape == (count, 2) and sizes.dtype == np.int32 else None
    except (UserError, KeyError, ValueError, AttributeError):
        return None  # not there, or damaged


def _keep(found: Scan, kept: Path) -> None:
    problems = np.frombuffer(json.dumps(found.problems).encode(), np.uint8)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda path: _save(path, found.sizes, problems))
    except (OSError, WorkError) as e:
        console.notice(f"what was found in the images is not kept ({e}): the next run looks again")


def _save(path: Path, sizes: np.ndarray, problems: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, sizes=sizes, problems=problems)


def scan_all(images: StoredImages, what: str) -> Scan:
    sizes, problems = np.zeros((len(images), 2), np.int32), {}
    spans = (images.span(i) for i in range(len(images)))
    with console.progress(f"Checking {what}", len(images)) as advance:
        for i, found in enumerate(in_order(examine, spans, len(images))):
            if isinstance(found, str):
                problems[i] = found
            else:
                sizes[i] = found
            advance(1)
    return Scan(sizes, problems)


def examine(span: Span) -> tuple[int, int] | str:
    """The size of an image that can be decoded, else what is wrong with it.

    A JPEG is decoded at an eighth of its size, for which all of its bytes are read all the same. Raises `UserError` if
    it cannot be read: that says nothing of the image.
    """
    try:
        content = span.read()
    except WorkError as e:
        raise UserError(str(e)) from None
    try:
        with open_image(File(span.name, content)) as image:
            width, height = image.size
            image.draft("RGB", (max(width // 8, 1), max(height // 8, 1)))
            image.load()
        return width, height
    except Exception as e:  # Pillow raises almost any type for a damaged file
        return f"{span.name} cannot be decoded ({reason_of(content, e)})"


def without(images: StoredImages, found: Scan) -> StoredImages:
    """The images that can be decoded, with their sizes."""
    good = np.setdiff1d(np.arange(len(images)), np.array(list(found.problems), np.int64))
    return replace(images, sizes=found.sizes).take(good)
