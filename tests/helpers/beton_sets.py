"""Small data sets to build a .beton of, and the files that came out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastarat.common.errors import UserError
from fastarat.common.json_files import checksum_of
from fastarat.data.formats.beton import file as beton
from fastarat.data.formats.beton import seal as beton_seal
from fastarat.data.formats.beton.storage import Storage
from fastarat.data.formats.beton.structure import FIELD, FIELDS, HEADER, struct_of
from fastarat.data.formats.beton.write import build
from fastarat.data.images.dataset import Dataset, Images, from_splits
from fastarat.data.images.stored import StoredImages
from tests.helpers.small_sets import one_line

STRUCTS = HEADER.itemsize + FIELD.itemsize * len(FIELDS)


def encoded(files: list[Path], labels: list[int]) -> StoredImages:
    """Image files as one split."""
    lengths = np.array([file.stat().st_size for file in files], np.int64)
    sizes = np.array([_size(file) for file in files], np.int32).reshape(-1, 2)
    n, names = len(files), tuple(file.name for file in files)
    zeros, raw = np.zeros(n, np.int64), np.zeros(n, bool)
    paths = tuple(map(str, files))
    return StoredImages(paths, np.arange(n, dtype=np.int32), zeros, lengths, raw, sizes, np.array(labels), names)


def _size(file: Path) -> tuple[int, int]:
    try:
        return Image.open(file).size
    except OSError:
        return (1, 1)


def folder_contents(folder: Path) -> Dataset:
    """An image folder with the classes cat and dog."""
    parts = {}
    for split in ("train", "test"):
        files = sorted((folder / split).glob("*/*"))
        parts[split] = encoded(files, [int(file.parent.name == "dog") for file in files])
    return from_splits("photos", parts["train"], parts["test"], ("cat", "dog"))


def pixel_contents(train: int = 6, test: int = 4, side: int = 12) -> Dataset:
    """Noise."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (train + test, side, side, 3), dtype=np.uint8)
    labels = np.arange(train + test, dtype=np.int64) % 3
    parts = Images(images[:train], labels[:train]), Images(images[train:], labels[train:])
    return from_splits("noise", *parts, ("a", "b", "c"))


def built(dataset: Dataset, out: Path, source: str = "source", **storage) -> Path:
    """The .beton of `dataset`."""
    build(dataset, out, Storage(**storage), source=source)
    return out


def reopened(path: Path) -> Dataset:
    """The file, opened as a user would."""
    return beton.read(path)


def refusal(path: Path) -> str:
    """The one line that says why the file is not opened."""
    with pytest.raises(UserError) as error:
        reopened(path)
    return one_line(error)


def pixels(images: StoredImages, i: int) -> np.ndarray:
    """A raw image."""
    width, height = images.sizes[i]
    return np.frombuffer(images.read(i), np.uint8).reshape(height, width, 3)


def unsealed(path: Path) -> Path:
    """As if FFCV itself had written it: nothing but its own numbers tells what is wrong with it."""
    beton_seal.place_of(path).unlink()
    return path


def change_seal(path: Path, **values: object) -> None:
    """With other values, as if they had been written."""
    place = beton_seal.place_of(path)
    changed = {**json.loads(place.read_text()), **values}
    place.write_text(json.dumps({**changed, "checksum": checksum_of(changed)}))


def patch(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def patch_struct(path: Path, i: int, field: str, **values: int) -> None:
    struct = struct_of(FIELDS)
    position = STRUCTS + i * struct.itemsize
    row = np.fromfile(path, struct, 1, offset=position)
    for name, value in values.items():
        (row[field] if name == "value" else row[field][name])[...] = value
    patch(path, position, row.tobytes())
