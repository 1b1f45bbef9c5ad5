"""The index of a folder of shards, kept for the next run: reading a thousand of them takes minutes."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastarat.common import console
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import as_file_name, parse_json, write_atomically
from fastarat.common.npz import read_npz
from fastarat.data.images.damaged import readable
from fastarat.data.images.decoding import DECODING
from fastarat.data.images.stored import PER_IMAGE, StoredImages

Index = tuple[StoredImages, StoredImages, tuple[str, ...]]
"""Training and test images, and the classes."""
SPLITS = ("train", "test")
INDEXING = 2
"""grows when shards are read otherwise: what was kept of them before is then made again"""


def indexed_once(folder: Path, files: list[Path], cache: Path, index: Callable[[Path], Index]) -> Index:
    """What `index(folder)` makes of `files`, from the folder `cache` if none of them has changed since."""
    kept = cache / f"{as_file_name(folder.name)}-index-{_key(files)}.npz"
    found = _read(kept)
    if found is None:
        found = index(folder)
        _keep(found, kept)
    return found


def _key(files: list[Path]) -> str:
    digest = hashlib.sha256(repr((DECODING, INDEXING)).encode())
    for path in files:
        with readable(path):
            status = path.stat()
        digest.update(os.fsencode(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()[:24]


def _read(kept: Path) -> Index | None:
    try:
        arrays = read_npz(kept)  # which compares checksums
        texts = parse_json(arrays["texts"].tobytes())
        train, test = (
            StoredImages(
                paths=tuple(texts[f"{split} paths"]),
                names=tuple(texts[f"{split} names"]),
                **{name: arrays[f"{split} {name}"] for name in PER_IMAGE},
            )
            for split in SPLITS
        )
        return train, test, tuple(texts["classes"])
    except (UserError, KeyError, ValueError, TypeError):
        return None  # not there, or damaged


def _keep(found: Index, kept: Path) -> None:
    parts = dict(zip(SPLITS, found[:2], strict=True))
    texts = {f"{split} {what}": getattr(part, what) for split, part in parts.items() for what in ("paths", "names")}
    text = np.frombuffer(json.dumps({**texts, "classes": found[2]}).encode(), np.uint8)
    arrays = {f"{split} {name}": getattr(part, name) for split, part in parts.items() for name in PER_IMAGE}
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda path: _save(path, {"texts": text, **arrays}))
    except (OSError, WorkError) as e:
        console.notice(f"the index of the shards is not kept ({e}): the next run reads them again")


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
