"""Arrays in .npy files: memory maps whose place on the disk is sure, and headers that are not believed."""

import math
import os
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from fastarat.common.errors import UserError
from fastarat.common.files import require_file

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
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from None
    except Exception:  # of a damaged header, NumPy raises almost any type
        raise UserError(f"{path} has no header of an array") from None


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of the array that follows. Raises almost any exception."""
    return _HEADERS[npy.read_magic(file)](file)
