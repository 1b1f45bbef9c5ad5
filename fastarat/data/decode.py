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

import numpy as np

from fastarat.errors import WorkError

BATCH = 128  # images handed to a process at a time; fewer than two batches are decoded right here


@dataclass(frozen=True)
class Decoded:
    """One batch of images."""

    names: list[str]
    pixels: np.ndarray
    """uint8 [n, H, W, 3]; zeros where an image could not be decoded."""
    problems: list[str]
    """One line for each such image, beginning with its name."""


def decode_all(files: Iterable[tuple[str, bytes]], count: int, size: tuple[int, int]) -> Iterator[Decoded]:
    """Decode `count` named files, each fitted to `size` (width, height), in order.

    Processes are spawned, so a script that comes here needs its `if __name__ == "__main__":`.
    Raises `WorkError` if a process dies.
    """
    batches = _batches(files)
    workers = min(os.cpu_count() or 1, count // BATCH)
    if workers < 2:
        yield from (decode_batch(batch, size) for batch in batches)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupt)
    try:
        yield from _in_order(pool, batches, size, ahead=3 * workers)
    except BrokenProcessPool as error:
        raise WorkError(
            "A process that decodes images died: out of memory, or a script without "
            "'if __name__ == \"__main__\":' around its work."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def decode_batch(batch: list[tuple[str, bytes]], size: tuple[int, int]) -> Decoded:
    """Decode each file of `batch`; what cannot be decoded becomes a problem, not an exception."""
    pixels = np.zeros((len(batch), size[1], size[0], 3), np.uint8)
    problems = []
    for row, (name, content) in enumerate(batch):
        try:
            pixels[row] = _decode(content, size)
        except Exception as error:  # Pillow raises almost any type for a damaged file
            problems.append(f"{name} cannot be decoded ({_reason(content, error)})")
    return Decoded([name for name, _ in batch], pixels, problems)


def _decode(content: bytes, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits a channel: save it with 8")
        # The shorter side is resized and the middle of the longer one kept; a no-op at the right size.
        fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC)
        return np.asarray(fitted)


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
    pool: ProcessPoolExecutor, batches: Iterator[list[tuple[str, bytes]]], size: tuple[int, int], ahead: int
) -> Iterator[Decoded]:
    """`Executor.map` would read every file into memory at once; this stays `ahead` batches in front."""
    pending: deque[Future[Decoded]] = deque()
    for batch in batches:
        pending.append(pool.submit(decode_batch, batch, size))
        if len(pending) == ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _ignore_interrupt() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
