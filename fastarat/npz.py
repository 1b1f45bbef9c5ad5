"""Reading .npz files as plain arrays."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fastarat.errors import UserError


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; nothing in it is unpickled. Raises `UserError` if unreadable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (
        OSError,
        RuntimeError,
        NotImplementedError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        raise UserError(f"{path} is no readable .npz file of plain arrays") from None
