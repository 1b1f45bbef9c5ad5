"""Files of `torch.save`, of which plain tensors, numbers and texts alone are read: nothing in them is ever run."""

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastarat.common.errors import UserError
from fastarat.common.files import require_file

ZIP = b"PK\x03\x04"
LEGACY = bytes.fromhex("80028a0a6cfc9c46f920")
"""how files begin since torch 1.6, and before: a pickle of a number"""
FOLDER, ENCRYPTED = 0x10, 0x1
"""bits of a part's attributes and of its flags"""


def read_pickled(path: Path, kinds: Sequence[bytes], fix: str) -> Any:
    """What a file holds, on the CPU. It begins as one of `kinds`; `fix` says what to do with a damaged one.

    Raises `UserError` for anything else, for more than tensors, and where a checksum of the zip file (the older kind
    has none) says that something has changed.
    """
    require_file(path)
    damaged = UserError(f"{path} is truncated or no checkpoint: {fix}")
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY))
        if start.startswith(ZIP):
            _check_zip(path, damaged)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not start.startswith(tuple(kinds)):
        more = start[:1] == b"\x80"  # a pickle, but none of torch's
        raise _more_than_tensors(path) if more else damaged
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle versions, which a damaged file names at random
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _more_than_tensors(path) from error
    except Exception as error:  # torch reads foreign bytes here, and has no list of what they can make it raise
        raise damaged from error
    _check_plain(state, path)
    return state


def _more_than_tensors(path: Path) -> UserError:
    return UserError(f"{path} holds more than tensors or is no checkpoint, and is not loaded")


def _check_zip(path: Path, damaged: UserError) -> None:
    """Compare what torch does not: the checksum of each part. Parts are stored as they are, and none twice."""
    try:
        with zipfile.ZipFile(path) as file:
            parts = file.infolist()
            names, size = {part.filename for part in parts}, sum(part.file_size for part in parts)
            is_plain = all(map(_is_as_it_was, parts)) and len(names) == len(parts) and size <= path.stat().st_size
            is_whole = is_plain and file.testzip() is None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise damaged from error
    if not is_whole:
        raise damaged


def _is_as_it_was(part: zipfile.ZipInfo) -> bool:
    """Whether a part is stored as it is. Of a folder torch reads nothing, and takes what lay in memory for it."""
    is_stored = part.compress_type == zipfile.ZIP_STORED and part.compress_size == part.file_size
    is_folder = part.filename.endswith("/") or part.external_attr & FOLDER
    return is_stored and not is_folder and not part.flag_bits & ENCRYPTED


def _check_plain(state: Any, path: Path) -> None:
    """Every tensor has all its numbers in memory: none is sparse, quantised, or one number that stands for many."""
    for tensor in _tensors_in(state):
        plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path} holds a tensor that is no plain one: save its state_dict() of dense tensors")


def _tensors_in(state: Any) -> Iterator[Tensor]:
    """All tensors of nested containers, each container once: a small file may name one very often."""
    left, seen = [state], set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            left += [*value, *value.values()] if isinstance(value, dict) else value
