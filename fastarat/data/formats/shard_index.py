"""The index of a folder of shards, kept for the next run: reading a thousand of them takes minutes."""

from pathlib import Path

import numpy as np

from fastarat.data.formats import shards
from fastarat.data.formats.archives import stem
from fastarat.data.images.cache import as_array, from_array, kept, key_of
from fastarat.data.images.dataset import SPLITS, Dataset, from_splits
from fastarat.data.images.stored import PER_IMAGE, StoredImages

INDEXING = 3
"""grows when shards are read otherwise: what was kept of them before is then made again"""


def indexed_once(folder: Path) -> Dataset:
    """What `shards.index` makes of `folder`, as it is kept if none of its files has changed since."""

    def make() -> dict[str, np.ndarray]:
        data = shards.index(folder)
        texts: dict[str, tuple[str, ...]] = {"classes": data.classes}
        arrays: dict[str, np.ndarray] = {}
        for split, part in data.stored_splits.items():
            texts |= {f"{split} paths": part.paths, f"{split} names": part.names}
            arrays |= {f"{split} {name}": getattr(part, name) for name in PER_IMAGE}
        return {**arrays, "texts": as_array(texts)}

    arrays = kept("scanned", f"{folder.name}-index", key_of(shards.files(folder), "index", INDEXING), make)
    texts = from_array(arrays["texts"])
    train, test = (
        StoredImages(
            paths=tuple(texts[f"{split} paths"]),
            names=tuple(texts[f"{split} names"]),
            **{name: arrays[f"{split} {name}"] for name in PER_IMAGE},
        )
        for split in SPLITS
    )
    return from_splits(stem(folder), train, test, tuple(texts["classes"]))
