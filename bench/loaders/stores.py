"""The same images in every form that a loader reads: arrays, PNG or JPEG files in a tar, and .beton files."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fastarat.common.console import progress
from fastarat.data.formats import prepared
from fastarat.data.formats.beton.storage import Storage
from fastarat.data.formats.beton.write import build
from fastarat.data.formats.find import find
from fastarat.data.images.dataset import Dataset, Images

Container = Literal["arrays", "files", "beton"]
Stored = Literal["raw", "png", "jpeg"]
Shape = tuple[Container, Stored]
"""what images lie in, and how each is stored"""

NUM_TEST = 64
"""test images that a store gets: nobody looks at them, but a data set has some"""


@dataclass(frozen=True)
class Stores:
    """The forms of one data set: images and their order are the same in all."""

    name: str
    reference: Path
    """what PIL reads for the comparison"""
    paths: dict[Shape, Path]


def small_stores(dataset: Dataset, shapes: set[Shape], folder: Path) -> Stores:
    """Images of one size as arrays, and in those of `shapes` that are wanted: PNG in a tar, raw pixels in a .beton.

    They are in order of their classes, which a tar of class folders has.
    """
    dataset = _in_order_of_classes(dataset)
    paths: dict[Shape, Path] = {("arrays", "raw"): folder / "arrays"}
    prepared.write(dataset, folder / "arrays", dataset.name)
    if ("files", "png") in shapes:
        paths["files", "png"] = folder / "png.tar"
        _write_tar(dataset, folder / "png.tar")
    if ("beton", "raw") in shapes:
        paths["beton", "raw"] = folder / "raw.beton"
        _build(find(str(folder / "arrays")).open_stored(), folder / "raw.beton")
    return Stores(dataset.name, folder / "arrays", paths)


def photo_stores(source: Path, shapes: set[Shape], folder: Path) -> Stores:
    """JPEG files of a folder or tar, and if it is among `shapes` a .beton of the same bytes.

    Raises `UserError` for what cannot be read.
    """
    stored = find(str(source)).open_stored()
    paths: dict[Shape, Path] = {("files", "jpeg"): source}
    if ("beton", "jpeg") in shapes:
        paths["beton", "jpeg"] = folder / "jpeg.beton"
        _build(stored, folder / "jpeg.beton")
    return Stores(stored.name, source, paths)


def random_photos(path: Path, num_images: int) -> None:
    """A tar of smooth random JPEGs of different sizes, around 64 pixels, in two classes."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for split, count in (("train", num_images), ("test", 4)):
            for i in range(count):
                width, height = (int(side) for side in rng.integers(56, 96, 2))
                coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
                image = coarse.resize((width, height), Image.Resampling.BICUBIC)
                _add(tar, f"{split}/{'ab'[i % 2]}/{i:04}.jpg", image, kind="JPEG", quality=90)


def _build(stored: Dataset, path: Path) -> None:
    """Pixels stay pixels, and a JPEG's bytes stay as they are."""
    mode = "raw" if stored.stored_splits["train"].raw.all() else "jpeg"
    build(stored, path, Storage(mode), source=stored.name)


def _in_order_of_classes(dataset: Dataset) -> Dataset:
    train, test = dataset.decoded_train, dataset.decoded_test
    # The names sort as their labels do.
    classes = tuple(f"{label:03}" for label in range(len(dataset.classes)))
    first = np.concatenate([np.flatnonzero(test.labels == label)[:1] for label in range(len(classes))])
    few = np.union1d(first, np.arange(min(NUM_TEST, len(test.labels))))
    train, test = _sorted(train, np.arange(len(train.labels))), _sorted(test, few)
    return Dataset(dataset.name, train, test, classes, dataset.max_value, "")


def _sorted(images: Images, rows: np.ndarray) -> Images:
    rows = rows[np.argsort(images.labels[rows], kind="stable")]
    return Images(images.images[rows], images.labels[rows])


def _write_tar(dataset: Dataset, path: Path) -> None:
    parts = (("train", dataset.decoded_train), ("test", dataset.decoded_test))
    count = sum(len(part.labels) for _, part in parts)
    with progress("PNG files", count) as advance, tarfile.open(path, "w") as tar:
        for split, part in parts:
            for row, (pixels, label) in enumerate(zip(part.images, part.labels, strict=True)):
                _add(tar, f"{split}/{dataset.classes[label]}/{row:06}.png", Image.fromarray(pixels), kind="PNG")
                advance(1)


def _add(tar: tarfile.TarFile, name: str, image: Image.Image, *, kind: str, **options: int) -> None:
    content = io.BytesIO()
    image.save(content, kind, **options)
    entry = tarfile.TarInfo(name)
    entry.size = len(content.getvalue())
    tar.addfile(entry, io.BytesIO(content.getvalue()))
