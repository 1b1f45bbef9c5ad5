"""Every stored image decoded once before training: its size, and what is wrong with it. Kept for the next run."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastarat import console
from fastarat.data.decode import File, ignore_interrupt, open_image, reason_of
from fastarat.data.encoded import EncodedSet, storage_key
from fastarat.errors import UserError, WorkError
from fastarat.files import write_atomically
from fastarat.npz import read_npz

CHUNK = 512


class Scan(NamedTuple):
    """What decoding every image told."""

    sizes: np.ndarray
    """int32 [N, 2]: (width, height); 0 for an image that cannot be decoded"""
    problems: dict[int, str]
    """a line for each image that cannot be decoded, by its place; it begins with the image's name"""


def scan(images: EncodedSet, cache: Path, what: str) -> Scan:
    """Decode all of `images` on every core, or read from the folder `cache` what the same files told before."""
    kept = cache / f"{storage_key(images)}.npz"
    found = _read(kept, len(images)) or _decoded_all(images, what)
    if not kept.exists():
        _keep(found, kept)
    return found


def _read(kept: Path, count: int) -> Scan | None:
    try:
        arrays = read_npz(kept)
        problems = {int(i): str(line) for i, line in json.loads(arrays["problems"].tobytes()).items()}
        return Scan(arrays["sizes"], problems) if arrays["sizes"].shape == (count, 2) else None
    except (UserError, KeyError, ValueError, AttributeError):
        kept.unlink(missing_ok=True)  # not there, or damaged
        return None


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


def _decoded_all(images: EncodedSet, what: str) -> Scan:
    chunks = [np.arange(start, min(start + CHUNK, len(images))) for start in range(0, len(images), CHUNK)]
    sizes, problems = np.zeros((len(images), 2), np.int32), {}
    with console.progress(f"Checking {what}", len(images)) as advance:
        for chunk, part in zip(chunks, _parts([images.take(chunk) for chunk in chunks]), strict=True):
            sizes[chunk] = part.sizes
            problems |= {int(chunk[row]): line for row, line in part.problems.items()}
            advance(len(chunk))
    return Scan(sizes, problems)


def _parts(parts: list[EncodedSet]) -> Iterator[Scan]:
    """Processes are spawned, so a script that comes here needs its `if __name__ == "__main__":`."""
    workers = min(os.cpu_count() or 1, len(parts))
    if workers < 2:
        yield from map(scan_part, parts)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=ignore_interrupt)
    try:
        yield from pool.map(scan_part, parts)
    except BrokenProcessPool as e:
        raise WorkError("A process that checks images died: out of memory, or killed; run it again.") from e
    finally:
        pool.shutdown(cancel_futures=True)


def scan_part(images: EncodedSet) -> Scan:
    """Decode each image, a JPEG at an eighth of its size, for which all of its bytes are read all the same."""
    sizes, problems = np.zeros((len(images), 2), np.int32), {}
    for row in range(len(images)):
        content = b""
        try:
            content = images.read(row)
            with open_image(File(images.names[row], content)) as image:
                size = image.size
                image.draft("RGB", (max(size[0] // 8, 1), max(size[1] // 8, 1)))
                image.load()
            sizes[row] = size
        except Exception as e:  # Pillow raises almost any type for a damaged file
            problems[row] = f"{images.names[row]} cannot be decoded ({reason_of(content, e)})"
    return Scan(sizes, problems)


def without(images: EncodedSet, found: Scan) -> EncodedSet:
    """The images that can be decoded, with their sizes."""
    good = np.setdiff1d(np.arange(len(images)), np.array(list(found.problems), np.int64))
    return replace(images, sizes=found.sizes).take(good)
