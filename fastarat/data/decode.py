"""JPEG and PNG bytes to 8-bit RGB pixels, on every core."""

import io
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastarat.errors import WorkError

if TYPE_CHECKING:
    from PIL import Image

BATCH = 128  # images handed to a process at a time; fewer than two batches are decoded right here


@dataclass(frozen=True)
class Decoded:
    """One batch of images."""

    names: list[str]
    pixels: np.ndarray
    """uint8 [n, H, W, 3]; zeros where an image was not decoded."""
    sizes: set[tuple[int, int]]
    """Every (width, height) that the files have."""
    problems: list[str]
    """One line for each image that cannot be decoded, beginning with its name."""


def decode_all(
    files: Iterable[tuple[str, bytes]], count: int, size: tuple[int, int], resize: bool
) -> Iterator[Decoded]:
    """Decode `count` named files in order; those not of `size` (width, height) are resized or left out.

    Processes are spawned, so a script that comes here needs its `if __name__ == "__main__":`.
    Raises `WorkError` if a process dies.
    """
    batches = _batches(files)
    workers = min(os.cpu_count() or 1, count // BATCH)
    if workers < 2:
        yield from (decode_batch(batch, size, resize) for batch in batches)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupt)
    try:
        yield from _in_order(pool, batches, size, resize, ahead=3 * workers)
    except BrokenProcessPool as error:
        raise WorkError(
            "A process that decodes images died: out of memory, or a script without "
            "'if __name__ == \"__main__\":' around its work."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def decode_batch(batch: list[tuple[str, bytes]], size: tuple[int, int], resize: bool) -> Decoded:
    """Decode each file of `batch`; what cannot be decoded becomes a problem, not an exception."""
    from PIL import Image

    result = Decoded([name for name, _ in batch], np.zeros((len(batch), size[1], size[0], 3), np.uint8), set(), [])
    for row, (name, content) in enumerate(batch):
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                result.sizes.add(image.size)
                if resize or image.size == size:
                    result.pixels[row] = _fitted(image, size)
        except Exception as error:  # Pillow raises almost any type for a damaged file
            result.problems.append(f"{name} cannot be decoded ({_reason(content, error)})")
    return result


def _fitted(image: "Image.Image", size: tuple[int, int]) -> np.ndarray:
    """The shorter side resized and the middle of the longer one kept."""
    from PIL import Image, ImageOps

    if image.mode.startswith(("I", "F")):
        raise ValueError("more than 8 bits a channel: save it with 8")
    colours = image.convert("RGB")
    if image.size != size:
        colours = ImageOps.fit(colours, size, Image.Resampling.BICUBIC)
    return np.asarray(colours)


def _reason(content: bytes, error: Exception) -> str:
    if not content:
        return "zero bytes"
    text = " ".join(str(error).split())
    return "not a JPEG or PNG image" if text.startswith("cannot identify") else text or type(error).__name__


def _batches(files: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    for file in files:
        batch.append(file)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _in_order(
    pool: ProcessPoolExecutor,
    batches: Iterator[list[tuple[str, bytes]]],
    size: tuple[int, int],
    resize: bool,
    ahead: int,
) -> Iterator[Decoded]:
    """`Executor.map` would read every file into memory at once; this stays `ahead` batches in front."""
    pending: deque[Future[Decoded]] = deque()
    for batch in batches:
        pending.append(pool.submit(decode_batch, batch, size, resize))
        if len(pending) == ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _ignore_interrupt() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
