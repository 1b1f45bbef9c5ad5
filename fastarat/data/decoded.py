"""Stored images decoded to one size: what evaluations look at. Kept as a memory map for the next run."""

from pathlib import Path

import numpy as np

from fastarat import console
from fastarat.data import prepared
from fastarat.data.dataset import ImageSet
from fastarat.data.decode import decode_all
from fastarat.data.encoded import EncodedSet, storage_key
from fastarat.data.layout import require_none
from fastarat.errors import WorkError
from fastarat.files import write_atomically


def decoded_once(images: EncodedSet, size: tuple[int, int], share: float, cache: Path, what: str) -> ImageSet:
    """The middle of each image, `share` of its shorter side, as `size` (width, height): uint8 [N, H, W, 3].

    An image that has the size already keeps its pixels. They are decoded into a file in the folder `cache` on first
    use, and from then on are a read-only memory map of it. Raises `WorkError` if that cannot be written.
    """
    if not len(images):
        return decoded_now(images, size, share, what)
    kept = cache / f"{what}-{storage_key(images, size, share)}.npy"
    if not kept.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise WorkError(
                f"cannot make {cache}: {e.strerror}; set FASTARAT_DATA to a folder you may write to"
            ) from None
        write_atomically(kept, lambda path: _fill(path, images, size, share, what))
    return ImageSet(np.load(kept, mmap_mode="r", allow_pickle=False), images.labels)


def decoded_now(images: EncodedSet, size: tuple[int, int], share: float, what: str) -> ImageSet:
    """As `decoded_once`, in memory: for a few images."""
    pixels = np.empty((len(images), size[1], size[0], 3), np.uint8)
    _decode_into(pixels, images, size, share, what)
    return ImageSet(pixels, images.labels)


def _fill(path: Path, images: EncodedSet, size: tuple[int, int], share: float, what: str) -> None:
    pixels = prepared.allocate_array(path, np.uint8, (len(images), size[1], size[0], 3))
    _decode_into(pixels, images, size, share, what)


def _decode_into(pixels: np.ndarray, images: EncodedSet, size: tuple[int, int], share: float, what: str) -> None:
    files = (images.file(i) for i in range(len(images)))
    with console.progress(f"Decoding {what}", len(images)) as advance:
        for row, image in enumerate(decode_all(files, len(images), size, resize=True, share=share)):
            require_none(what, [image.problem] if image.problem else [])
            pixels[row] = image.pixels
            advance(1)
