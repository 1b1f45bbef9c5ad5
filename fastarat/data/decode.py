"""JPEG and PNG bytes to 8-bit RGB pixels, on every core."""

import io
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastarat.errors import WorkError

if TYPE_CHECKING:
    from PIL import Image

BATCH = 128  # images handed to a process at a time; fewer than two batches are decoded right here


class File(NamedTuple):
    """An image as it is stored."""

    name: str
    content: bytes
    raw_size: tuple[int, int] | None = None
    """(width, height) where `content` is pixels, uint8 [H, W, 3]; None for a JPEG or PNG"""


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
    files: Iterable[File], count: int, size: tuple[int, int], resize: bool, share: float = 1.0
) -> Iterator[Decoded]:
    """Decode `count` files in order; those not of `size` (width, height) are resized or left out.

    What is resized is the middle: `share` of the shorter side, and as much of the longer one as fits.

    Processes are spawned, so a script that comes here needs its `if __name__ == "__main__":`.
    Raises `WorkError` if a process dies.
    """
    batches = _batches(files)
    workers = min(os.cpu_count() or 1, count // BATCH)
    if workers < 2:
        yield from (decode_batch(batch, size, resize, share) for batch in batches)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=ignore_interrupt)
    try:
        work = partial(decode_batch, size=size, resize=resize, share=share)
        yield from _in_order(pool, batches, work, ahead=3 * workers)
    except BrokenProcessPool as error:
        raise WorkError(
            "A process that decodes images died: out of memory, or a script without "
            "'if __name__ == \"__main__\":' around its work."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def decode_batch(batch: list[File], size: tuple[int, int], resize: bool, share: float = 1.0) -> Decoded:
    """Decode each file of `batch`; what cannot be decoded becomes a problem, not an exception."""
    result = Decoded([file.name for file in batch], np.zeros((len(batch), size[1], size[0], 3), np.uint8), set(), [])
    for row, file in enumerate(batch):
        try:
            with open_image(file) as image:
                result.sizes.add(image.size)
                if resize or image.size == size:
                    result.pixels[row] = _fitted(image, size, share)
        except Exception as error:  # Pillow raises almost any type for a damaged file
            result.problems.append(f"{file.name} cannot be decoded ({reason_of(file.content, error)})")
    return result


def open_image(file: File) -> "Image.Image":
    """The image, its pixels not decoded yet. Raises whatever Pillow does for a damaged file."""
    from PIL import Image

    if file.raw_size is not None:
        return Image.frombuffer("RGB", file.raw_size, file.content, "raw", "RGB", 0, 1)
    image = Image.open(io.BytesIO(file.content), formats=("JPEG", "PNG"))
    require_8_bits(image)
    return image


def require_8_bits(image: "Image.Image") -> None:
    """Raise `ValueError` for an image of more than 8 bits a channel, which would be cut off silently."""
    if image.mode.startswith(("I", "F")):
        raise ValueError("more than 8 bits a channel: save it with 8")


def _fitted(image: "Image.Image", size: tuple[int, int], share: float) -> np.ndarray:
    """The middle of the image, resized; one that has the size already keeps its pixels."""
    from PIL import Image, ImageOps

    colours = image.convert("RGB")
    if image.size != size:
        colours = ImageOps.fit(colours, size, Image.Resampling.BICUBIC, bleed=(1 - share) / 2)
    return np.asarray(colours)


def reason_of(content: bytes, error: Exception) -> str:
    """Why a file of this content could not be decoded, in a few words."""
    if not content:
        return "zero bytes"
    text = " ".join(str(error).split())
    return "not a JPEG or PNG image" if text.startswith("cannot identify") else text or type(error).__name__


def _batches(files: Iterable[File]) -> Iterator[list[File]]:
    batch: list[File] = []
    for file in files:
        batch.append(file)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _in_order(
    pool: ProcessPoolExecutor, batches: Iterator[list[File]], work: Callable[[list[File]], Decoded], ahead: int
) -> Iterator[Decoded]:
    """`Executor.map` would read every file into memory at once; this stays `ahead` batches in front."""
    pending: deque[Future[Decoded]] = deque()
    for batch in batches:
        pending.append(pool.submit(work, batch))
        if len(pending) == ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def ignore_interrupt() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
