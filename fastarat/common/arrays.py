"""Arrays in files: memory maps of .npy whose place on the disk is sure; .npz compared with its checksums. No header is
believed."""

import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from fastarat.common.errors import UserError
from fastarat.common.files import require_file
from fastarat.common.memory_limit import usable_memory

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def allocate(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """A new, writable memory map whose place on the disk is sure. Raises `OSError` if there is none."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # A memory map on a full disk would end the process with SIGBUS; asking for the space raises instead.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def open_mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A read-only memory map of the array `path`. Raises `UserError` if it is not of this type, shape and size."""
    require_file(path)
    try:
        with path.open("rb") as file:
            found_shape, is_fortran, found = read_header(file)
            begin, size = file.tell(), path.stat().st_size
        if found != np.dtype(dtype) or found_shape != shape or is_fortran:
            raise UserError(f"{path} is {found} {list(found_shape)}, not {np.dtype(dtype)} {list(shape)}"[:400])
        wanted = begin + math.prod(shape) * found.itemsize
        if size != wanted:
            raise UserError(f"{path} has {size} bytes instead of {wanted}")
        return np.memmap(path, found, "r", begin, shape)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # of a damaged header, NumPy raises almost any type
        raise UserError(f"{path} has no header of an array") from error


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of the array that follows. Raises almost any exception."""
    return _HEADERS[npy.read_magic(file)](file)


BLOCK = 1 << 22
MOST_FOLD = 1032
"""as small as deflate can make anything"""
END = struct.Struct("<4s4s2H2LH")
"""what ends a ZIP file: signature, disks, entries (here, in all), size and place of their table, length of a comment"""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file as NumPy writes it: flags, numbers and text; nothing in it is unpickled.

    No size in it is believed before the file's own size allows it. Raises `UserError` if it is damaged or no such file.
    """
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _require_whole_table(path, len(entries))
            _require_room(path, entries)
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # of a damaged file, zipfile and NumPy raise almost any type
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is no readable .npz file of plain arrays ({reason})") from error


def _require_whole_table(path: Path, count: int) -> None:
    """The table of entries, at the end of the file, has no checksum; zipfile passes over what a wrong bit hides."""
    with path.open("rb") as file:
        file.seek(-END.size, os.SEEK_END)
        signature, _, here, all_of_them, size, offset, comment = END.unpack(file.read())
    is_large = 0xFFFF in (here, all_of_them) or 0xFFFFFFFF in (size, offset)  # numbers stand elsewhere
    fits = here == all_of_them == count and offset + size + END.size == path.stat().st_size
    if signature != b"PK\5\6" or comment or not (fits or is_large):
        raise ValueError("its table of entries is damaged")


def _require_room(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """What a small file says of itself may take any memory, by itself or as entries that lie upon each other."""
    names = {entry.filename.removesuffix(".npy") for entry in entries}
    stored = sum(entry.compress_size for entry in entries)
    is_honest = all(entry.file_size <= MOST_FOLD * entry.compress_size for entry in entries)
    if len(names) < len(entries) or stored > path.stat().st_size or not is_honest:
        raise ValueError("its table of entries is damaged")
    wanted, there = sum(entry.file_size for entry in entries), usable_memory()
    if wanted > there:
        raise UserError(
            f"{path} takes {wanted / 2**30:,.0f} GiB of memory, more than the {there / 2**30:,.0f} there are"
        )


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Raises almost any exception for a damaged entry."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename} is compressed as NumPy does not")
    with archive.open(entry) as file:
        shape, is_fortran, dtype = read_header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biufcSU" or not dtype.itemsize or file.tell() + size != entry.file_size:
            raise ValueError(f"{entry.filename} holds no array of {dtype} {list(shape)}"[:200])
        content = _bytes(file, size)
    return content.view(dtype).reshape(shape, order="F" if is_fortran else "C")


def _bytes(file: IO[bytes], size: int) -> np.ndarray:
    content = np.empty(size, np.uint8)
    for begin in range(0, size, BLOCK):
        wanted = min(BLOCK, size - begin)
        block = file.read(wanted)
        if len(block) < wanted:
            raise EOFError("it ends early")
        content[begin : begin + wanted] = np.frombuffer(block, np.uint8)
    if file.read(1):  # only what has been read to its end is compared with its checksum
        raise ValueError("it is longer than it says")
    return content
