"""Reading .npz files as plain arrays, each compared with its checksum."""

import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from fastarat.common.errors import UserError
from fastarat.common.files import require_file
from fastarat.common.npy import read_header

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
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from None
    except Exception as e:  # of a damaged file, zipfile and NumPy raise almost any type
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(f"{path} is no readable .npz file of plain arrays ({reason})") from None


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
    wanted, there = sum(entry.file_size for entry in entries), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
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
