"""What is worked out once about a data set and kept under `data_root()`: where, and by which key."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastarat.common import console
from fastarat.common.arrays import read_npz
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import as_file_name, expanded, write_atomically
from fastarat.common.json_files import parse_json
from fastarat.data.images.damaged import readable
from fastarat.data.images.decoding import DECODING

CACHES = ("prepared", "decoded", "scanned", "checked")
"""Folders under `data_root()` that hold what was made of data sets, and no data set."""
DIGEST = "digest"


def data_root() -> Path:
    """Where named data sets lie: $FASTARAT_DATA, else ~/.cache/fastarat. Raises `UserError` if there is no home."""
    chosen = os.environ.get("FASTARAT_DATA")
    if chosen:
        return expanded(chosen)
    try:
        return Path.home() / ".cache" / "fastarat"
    except RuntimeError as error:  # a container's user, without a name and without $HOME
        raise UserError("this user has no home to look for data in: set FASTARAT_DATA to a folder") from error


def key_of(paths: Iterable[Path], *settings: object, arrays: Iterable[np.ndarray] = ()) -> str:
    """24 hex digits that change with the files' places, sizes and times, with the settings and with the arrays.

    Raises `UserError` for a file that is not there.
    """
    digest = hashlib.sha256(repr((DECODING, *settings)).encode())
    for path in paths:
        with readable(path):
            status = path.stat()
        digest.update(os.fsencode(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}\n"))
    for values in arrays:
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:24]


def kept(folder: str, name: str, key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, which are kept in `folder`, one of `CACHES`, for the next call with the same key.

    They are compared with their checksum each time, and made again where they are damaged. Where nothing can be
    written a person is told, and they are made each time. Raises what `make` raises.
    """
    place = data_root() / folder / f"{as_file_name(name)}-{key}.npz"
    with contextlib.suppress(UserError):  # not there, or damaged
        arrays = read_npz(place)
        if np.array_equal(arrays.pop(DIGEST, np.empty(0)), _digest(arrays)):
            return arrays
    arrays = make()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, lambda path: _save(path, {**arrays, DIGEST: _digest(arrays)}))
    except (OSError, WorkError) as error:
        console.notice(f"what was found in {name} is not kept ({error}): the next run looks again")
    return arrays


def _digest(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """SHA-256 over names, types, shapes and bytes: uint8 [32]."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {values.shape} ".encode() + np.ascontiguousarray(values).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def as_array(value: Any) -> np.ndarray:
    """A value of texts and numbers as JSON in an array, to be kept: uint8."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_array(array: np.ndarray) -> Any:
    """What `as_array` was given; tuples are lists, and keys are texts."""
    return parse_json(array.tobytes())
