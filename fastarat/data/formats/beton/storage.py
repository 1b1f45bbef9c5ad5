"""Images as a .beton stores them: pixels, or JPEG."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from fastarat.common.errors import UserError
from fastarat.data.formats.beton.structure import JPEG_END, MAX_PAGE, MAX_SIDE
from fastarat.data.images.decoding import File, open_image, reason_of

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["raw", "jpeg", "smart"]
SMART_BYTES = 16384
"""What `smart` stores raw: four pages of memory (73x73 pixels), which are read sooner than any JPEG is decoded."""


@dataclass(frozen=True)
class Storage:
    """How images are stored."""

    mode: Mode = "smart"
    """raw: pixels; jpeg; smart: pixels where they take no more than `SMART_BYTES`, else JPEG"""
    longest_side: int | None = None
    """larger images are shrunk to this many pixels; None: images keep their size"""
    quality: int = 90
    """of images that are encoded again, with half the resolution for colour (4:2:0)"""

    def require(self) -> None:
        """Raise `UserError` for settings that mean nothing."""
        if self.mode not in get_args(Mode):
            raise UserError(f"--mode {self.mode}: give {', '.join(get_args(Mode))}")
        if self.longest_side is not None and self.longest_side < 1:
            raise UserError(f"--longest-side {self.longest_side}: give the number of pixels, such as 400")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: give 1 to 100; 90 is hard to tell from the original")


class StoredImage(NamedTuple):
    """One image's bytes."""

    raw: bool
    width: int
    height: int
    content: bytes


def record(file: File, storage: Storage) -> StoredImage | str:
    """`file` as it is stored, or a line that begins with its name and says what is wrong with it."""
    try:
        with open_image(file) as image:
            image.load()
            jpeg = file.content if _is_plain_jpeg(image, file.content) else None
            return _stored(image.convert("RGB"), jpeg, storage)
    except Exception as error:  # Pillow raises almost any type for a damaged file
        return f"{file.name} cannot be stored ({reason_of(file.content, error)})"


def _is_plain_jpeg(image: "Image.Image", content: bytes) -> bool:
    """Whether FFCV can decode the file as it is, at full speed: three channels, baseline, nothing behind its end."""
    plain = image.format == "JPEG" and image.mode == "RGB" and not image.info.get("progressive")
    return plain and content.endswith(JPEG_END)


def _stored(image: "Image.Image", jpeg: bytes | None, storage: Storage) -> StoredImage:
    """RGB `image`, of which `jpeg`, if given, is the file: kept as it is where it may be, without a second loss."""
    from PIL import Image

    size = _fitting(image.size, storage.longest_side)
    if max(size) > MAX_SIDE:
        raise ValueError(f"{size[0]}x{size[1]} is larger than {MAX_SIDE} pixels: give --longest-side")
    if size != image.size:
        image, jpeg = image.resize(size, Image.Resampling.LANCZOS), None
    num_bytes = 3 * size[0] * size[1]
    raw = storage.mode == "raw" or (storage.mode == "smart" and num_bytes <= SMART_BYTES)
    content = image.tobytes() if raw else jpeg or _encoded(image, storage.quality)
    if len(content) > MAX_PAGE:
        raise ValueError(f"{len(content)} bytes are more than {MAX_PAGE}: give --longest-side or --mode jpeg")
    return StoredImage(raw, *size, content)


def _fitting(size: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
    scale = (longest_side or max(size)) / max(size)
    if scale >= 1:
        return size
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _encoded(image: "Image.Image", quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
