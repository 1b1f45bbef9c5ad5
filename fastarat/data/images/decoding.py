"""JPEG and PNG bytes to 8-bit RGB pixels, on every core."""

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastarat.data.images.pool import in_order

if TYPE_CHECKING:
    from PIL import Image


DECODING = 2
"""grows when files are decoded otherwise or refused for more: what was kept of them before is then made again"""


class File(NamedTuple):
    """An image as it is stored."""

    name: str
    content: bytes
    raw_size: tuple[int, int] | None = None
    """(width, height) where `content` is pixels, uint8 [H, W, 3]; None for a JPEG or PNG"""


class Decoded(NamedTuple):
    """What became of an image."""

    name: str
    pixels: np.ndarray | None
    """uint8 [H, W, 3]; None where it was not decoded"""
    size: tuple[int, int] | None
    """(width, height) of the file"""
    problem: str | None
    """why it cannot be decoded, beginning with its name"""


def decode_all(
    files: Iterable[File], count: int, size: tuple[int, int], resize: bool, share: float = 1.0
) -> Iterator[Decoded]:
    """Decode `count` files in order, on every core; those not of `size` (width, height) are resized or left out.

    What is resized is the middle: `share` of the shorter side, and as much of the longer one as fits.
    Raises `WorkError` if a process dies.
    """
    return in_order(partial(decode, size=size, resize=resize, share=share), files, count)


def decode(file: File, size: tuple[int, int], resize: bool, share: float) -> Decoded:
    """Decode a file; one that cannot be decoded becomes a problem, not an exception."""
    try:
        with open_image(file) as image:
            fits = resize or image.size == size
            return Decoded(file.name, _fitted(image, size, share) if fits else None, image.size, None)
    except Exception as error:  # Pillow raises almost any type for a damaged file
        return Decoded(file.name, None, None, f"{file.name} cannot be decoded ({reason_of(file.content, error)})")


@contextmanager
def open_image(file: File) -> Iterator["Image.Image"]:
    """The image, its pixels not decoded yet. Raises whatever Pillow does for a damaged file, and `ValueError` for more
    than 8 bits a channel, which would be cut off silently."""
    from PIL import Image

    if file.raw_size is not None:
        yield Image.frombuffer("RGB", file.raw_size, file.content, "raw", "RGB", 0, 1)
        return
    with _without_warnings(), Image.open(io.BytesIO(file.content), formats=("JPEG", "PNG")) as image:
        # Pillow opens coloured images of more bits in its modes of 8; how they are stored is in the tile: `RGB;16B`.
        if image.mode.startswith(("I", "F")) or any(";16" in str(tile.args) for tile in image.tile):
            raise ValueError("more than 8 bits a channel: save it with 8")
        yield image


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow's warnings are of metadata, of transparency, which nets do not see, and of images nearly too large, and
    name no image. What matters it raises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _fitted(image: "Image.Image", size: tuple[int, int], share: float) -> np.ndarray:
    """The middle of the image, resized; all of an image that has the size already keeps its pixels."""
    from PIL import Image, ImageOps

    colours = image.convert("RGB")
    if image.size != size or share != 1:
        colours = ImageOps.fit(colours, size, Image.Resampling.BICUBIC, bleed=(1 - share) / 2)
    return np.asarray(colours)


def pixels_of(file: File, box: np.ndarray, size: tuple[int, int], stored_size: np.ndarray | None = None) -> np.ndarray:
    """A part of an image as RGB, uint8 [H, W, 3], by PIL: every other decoder's pixels are compared with these.

    `box`: int [4], (left, top, width, height) in stored pixels. `size`: (width, height) of the result; a box that has
    it keeps its pixels, any other is resized (bilinear, averaging where it shrinks), a JPEG from the least fraction of
    its size that is enough. Raises whatever Pillow does for a damaged file, and `ValueError` for one that is not of
    `stored_size` (width, height), if that is given: its box is another image's.
    """
    left, top, width, height = map(int, box)
    with open_image(file) as image:
        full = image.size
        if stored_size is not None and full != tuple(stored_size):
            raise ValueError(f"{full[0]}x{full[1]} pixels, not {stored_size[0]}x{stored_size[1]}")
        if width >= 2 * size[0] and height >= 2 * size[1]:
            image.draft("RGB", (full[0] * size[0] // width, full[1] * size[1] // height))
        across, down = image.size[0] / full[0], image.size[1] / full[1]
        corners = (left * across, top * down, (left + width) * across, (top + height) * down)
        return np.asarray(_part(image.convert("RGB"), corners, size))


def _part(image: "Image.Image", corners: tuple[float, float, float, float], size: tuple[int, int]) -> "Image.Image":
    from PIL import Image

    left, top, right, bottom = corners
    if (right - left, bottom - top) == size:
        return image.crop((int(left), int(top), int(right), int(bottom)))
    return image.resize(size, Image.Resampling.BILINEAR, box=corners)


def reason_of(content: bytes, error: Exception) -> str:
    """Why a file of this content could not be decoded, in a few words."""
    if not content:
        return "zero bytes"
    text = " ".join(str(error).split())[:200]
    if type(error).__name__ == "DecompressionBombError":
        return f"{text.split(',')[0]}: shrink it"
    return "not a JPEG or PNG image" if text.startswith("cannot identify") else text or type(error).__name__
