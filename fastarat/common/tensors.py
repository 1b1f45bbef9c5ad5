"""Tensors on disk as safetensors, with a checksum of their own: the format has none."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastarat.common.console import one_line
from fastarat.common.errors import UserError
from fastarat.common.files import require_file, write_atomically

CHECKSUM = "sha256"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Damaged(UserError):
    """A file that is no safetensors file, or not a whole one any more."""


class Header(NamedTuple):
    """What a file says of itself, before any tensor is read."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, and texts, with their SHA-256. Raises as `write_atomically` does."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = dict(metadata or {})

    def write(temporary: Path) -> None:
        try:
            save_file(kept, temporary, {**texts, CHECKSUM: checksum(kept, texts)})
            _sort_texts(temporary)
        except SafetensorError as error:
            raise RuntimeError(str(error)) from error

    write_atomically(path, write)


def _sort_texts(path: Path) -> None:
    """Bring the texts into the order of their names: safetensors writes them in a new one each time, and equal tensors
    have to be equal files."""
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same header takes the same space"
        file.seek(8)
        file.write(text.ljust(size))


def read_header(path: Path) -> Header:
    """Names, shapes and dtypes. Raises `UserError` for what is no such file (`Damaged`); takes no memory for the
    tensors."""
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: DTYPES[part.get_dtype()] for name, part in slices.items()}
            return Header(dict(file.metadata() or {}), shapes, dtypes)
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged(f"{path} is truncated or no safetensors file ({one_line(error, 200)})") from error
    except KeyError as error:
        raise UserError(f"{path} holds tensors of the type {error}, which no net here has") from error


def read_tensors(path: Path, sealed: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, on the CPU, and the texts beside them.

    Raises `Damaged` for what is no such file, and where the checksum says that something has changed; a file without
    one, as other programs write it, is read as it is, unless it must be `sealed`.
    """
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in header.shapes}
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged(f"{path} is truncated or no safetensors file ({one_line(error, 200)})") from error
    texts = header.metadata
    wanted = texts.pop(CHECKSUM, None)
    if (sealed or wanted is not None) and wanted != checksum(tensors, texts):
        raise Damaged(f"{path} is damaged: its checksum does not fit its content; make or fetch it again")
    return tensors, texts


def checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """SHA-256 (64 hex digits) over texts, and over names, dtypes, shapes and bytes of contiguous tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(f"{name}\0{texts[name]}\0".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
