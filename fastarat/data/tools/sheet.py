"""Some images of each class in one picture, to see at a glance what a data set holds."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastarat.common.errors import WorkError
from fastarat.common.files import write_atomically
from fastarat.data.images.dataset import Images
from fastarat.data.images.decoding import open_image, reason_of
from fastarat.data.images.stored import StoredImages

if TYPE_CHECKING:
    from PIL import Image

MOST_ROWS = 10
TILE, GAP, CAPTION = 96, 4, 14  # pixels
BACKGROUND, INK = (255, 255, 255), (0, 0, 0)
SOFTWARE = {"Software": "fastarat data info"}
"""a text of the PNG, by which a sheet is known"""


def write(
    images: Images | StoredImages, classes: tuple[str, ...], out: Path, *, max_value: int = 255, num_images: int = 8
) -> None:
    """Write a PNG with a row of up to `num_images` images for each of up to `MOST_ROWS` classes, chosen evenly.

    Images keep their shape; small ones are enlarged without smoothing. Raises `WorkError` if `out` cannot be written.
    """
    from PIL import Image, ImageDraw
    from PIL.PngImagePlugin import PngInfo

    shown = _evenly(np.arange(len(classes)), MOST_ROWS)
    height = TILE + CAPTION + GAP
    sheet = Image.new("RGB", (GAP + num_images * (TILE + GAP), GAP + len(shown) * height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(shown.tolist()):
        top = GAP + row * height
        draw.text((GAP, top), classes[label].encode("latin-1", "replace").decode("latin-1"), INK)
        for column, i in enumerate(_evenly(np.flatnonzero(images.labels == label), num_images).tolist()):
            tile = _tile(_image(images, i, max_value))
            left = GAP + column * (TILE + GAP)
            sheet.paste(tile, (left + (TILE - tile.width) // 2, top + CAPTION + (TILE - tile.height) // 2))
    told = PngInfo()
    for name, text in SOFTWARE.items():
        told.add_text(name, text)
    write_atomically(out, lambda path: sheet.save(path, "PNG", pnginfo=told))


def is_sheet(path: Path) -> bool:
    """Whether a file is what `write` writes."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return SOFTWARE.items() <= image.info.items()
    except (OSError, ValueError, SyntaxError):  # of a PNG cut short in its head
        return False


def _evenly(values: np.ndarray, most: int) -> np.ndarray:
    """Up to `most` of the values, spread from first to last."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(int)]


def _image(images: Images | StoredImages, i: int, max_value: int) -> "Image.Image":
    from PIL import Image

    if isinstance(images, StoredImages):
        file = images.file(i)
        try:
            with open_image(file) as image:
                return image.convert("RGB")
        except Exception as error:  # Pillow raises almost any type for a damaged file
            raise WorkError(f"image {file.name} cannot be decoded ({reason_of(file.content, error)})") from error
    pixels = (images.images[i].astype(np.float32) * (255 / max_value)).round().astype(np.uint8)
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("RGB")


def _tile(image: "Image.Image") -> "Image.Image":
    """The image so large that its longer side fills the tile."""
    from PIL import Image

    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
