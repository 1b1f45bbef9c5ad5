"""Where compiled code is kept, so that the next run finds it."""

import atexit
import os
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from fastarat.common.console import notice
from fastarat.common.errors import UserError
from fastarat.common.processes import is_first


def cache_folder() -> Path | None:
    """Where compiled code is kept: $TORCHINDUCTOR_CACHE_DIR, or in the user's cache directory, if there is one."""
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    folder = Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fastarat-compiled"))
    try:
        return folder.expanduser()
    except RuntimeError:  # with no home at all ~ stays as it is: a folder of that name is nowhere, and is not made
        return None


def keep_caches() -> Path:
    """Let compiled code outlive the process: in $TORCHINDUCTOR_CACHE_DIR, or the user's cache directory.

    Where the user's cache directory cannot be written, code lies in a folder that goes with the process, and that is
    said. Raises `UserError` if $TORCHINDUCTOR_CACHE_DIR is set and cannot be written.
    """
    chosen, folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR"), cache_folder()
    if folder is not None and _is_writable(folder):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        return folder
    if chosen:
        raise UserError(f"compiled code cannot be kept in {folder}: set TORCHINDUCTOR_CACHE_DIR, or --compile eager")
    if is_first():
        place = folder or "~/.cache"
        notice(f"compiled code is not kept for the next run: {place} cannot be written; set TORCHINDUCTOR_CACHE_DIR")
    folder = Path(mkdtemp(prefix="fastarat-compiled-"))  # for this user alone: what lies in it is run
    atexit.register(rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return folder


def _is_writable(folder: Path) -> bool:
    """Whether it is there, or can be made, and takes files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
