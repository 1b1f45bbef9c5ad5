"""Stored images decoded to one size: what evaluations look at. Kept as a memory map for the next run."""

import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from fastarat.common import console, npy, unfinished
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import as_file_name, synchronise
from fastarat.common.problems import require_none
from fastarat.data.images.dataset import Images
from fastarat.data.images.decoding import decode_all
from fastarat.data.images.stored import StoredImages, storage_key

BLOCK = 1 << 24


def decoded_once(images: StoredImages, size: tuple[int, int], share: float, cache: Path, what: str) -> Images:
    """The middle of each image, `share` of its shorter side, as `size` (width, height): uint8 [N, H, W, 3].

    An image that has the size already keeps its pixels. They are decoded into a file in the folder `cache` on first
    use, and from then on are a read-only memory map of it. Its name holds its checksum, with which it is compared each
    time, all of it: that takes a small part of what an evaluation does with every image. One that has changed is
    decoded again. Raises `WorkError` if that cannot be written.
    """
    if not len(images):
        return decoded_now(images, size, share, what)
    name, shape = f"{as_file_name(what)}-{storage_key(images, size, share)}", (len(images), size[1], size[0], 3)
    pixels = _kept(cache, name, shape)
    if pixels is None:
        try:
            _keep(cache, name, shape, images, size, share, what)
        except OSError as e:
            raise WorkError(
                f"cannot write {cache}: {e.strerror or e}; let FASTARAT_DATA name a folder with room for it"
            ) from None
        pixels = _kept(cache, name, shape)
    if pixels is None:
        raise WorkError(f"what was written to {cache} reads otherwise: check the disk")
    return Images(pixels, images.labels)


def decoded_now(images: StoredImages, size: tuple[int, int], share: float, what: str) -> Images:
    """As `decoded_once`, in memory: for a few images."""
    pixels = np.empty((len(images), size[1], size[0], 3), np.uint8)
    _decode_into(pixels, images, size, share, what)
    return Images(pixels, images.labels)


def _kept(cache: Path, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The pixels `name` if they are in `cache` as they were written; what is not goes."""
    for path in cache.glob(f"{name}-????????.npy"):
        try:
            pixels = npy.open_mapped(path, np.uint8, shape)
            if _checksum(pixels, f"Checking {path.name}") == path.stem[-8:]:
                return pixels
            problem = f"{path} has changed since it was written"
        except UserError as e:
            problem = str(e)
        console.notice(f"{problem}: its images are decoded again")
        with suppress(OSError):  # if it cannot be replaced either, writing says so
            path.unlink()
    return None


def _keep(
    cache: Path,
    name: str,
    shape: tuple[int, ...],
    images: StoredImages,
    size: tuple[int, int],
    share: float,
    what: str,
) -> None:
    with unfinished.beside(cache / name) as folder:
        pixels = npy.allocate(folder / "pixels.npy", np.uint8, shape)
        _decode_into(pixels, images, size, share, what)
        synchronise(folder / "pixels.npy")
        (folder / "pixels.npy").rename(cache / f"{name}-{_checksum(pixels, f'Keeping {what}')}.npy")


def _checksum(pixels: np.ndarray, doing: str) -> str:
    """CRC-32, 8 hex digits."""
    content, crc = pixels.reshape(-1), 0
    with console.progress(doing, len(content)) as advance:
        for begin in range(0, len(content), BLOCK):
            crc = zlib.crc32(content[begin : begin + BLOCK].data, crc)
            advance(BLOCK)
    return f"{crc:08x}"


def _decode_into(pixels: np.ndarray, images: StoredImages, size: tuple[int, int], share: float, what: str) -> None:
    files = (images.file(i) for i in range(len(images)))
    with console.progress(f"Decoding {what}", len(images)) as advance:
        for row, image in enumerate(decode_all(files, len(images), size, resize=True, share=share)):
            require_none(what, [image.problem] if image.problem else [])
            pixels[row] = image.pixels
            advance(1)
