"""A part of one stored image to pixels, by PIL: the reference that every other decoder is compared with."""

from typing import TYPE_CHECKING

import numpy as np

from fastarat.data.images.decoding import File, open_image

if TYPE_CHECKING:
    from PIL import Image


def pixels_of(file: File, box: np.ndarray, size: tuple[int, int], stored_size: np.ndarray | None = None) -> np.ndarray:
    """A part of an image as RGB: uint8 [H, W, 3].

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
