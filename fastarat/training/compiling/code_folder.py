"""Where compiled code is kept, so that the next run finds it."""

import atexit
import os
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir, mkdtemp

from fastarat.common.console import notice
from fastarat.common.errors import UserError
from fastarat.common.processes import is_first

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_OURS = "fastarat-compiled"
_UNASKED = ("torchinductor_", f"{_OURS}-")
"""what begins the names of temporary folders that torch and `keep_caches` write into the variable"""


def cache_folder() -> Path | None:
    """Where what the next run finds is kept: $TORCHINDUCTOR_CACHE_DIR, or in the user's cache directory, if there is
    one. The same before and after torch or `keep_caches` write into the variable."""
    chosen = _chosen()
    try:
        folder = Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", _OURS)).expanduser()
    except RuntimeError:  # with no home at all ~ stays as it is: a folder of that name is nowhere, and is not made
        return None
    if chosen:
        os.environ[VARIABLE] = str(folder)  # torch would make a folder of the name ~
    elif not os.environ.get(VARIABLE):
        os.environ.pop(VARIABLE, None)  # and would take an empty one for the current directory
    return folder


def why_no_folder() -> str:
    """Why no code can be kept in the folder that the user has chosen, with what mends it; empty if it can, or if none
    is chosen."""
    folder = cache_folder()
    if not _chosen() or (folder is not None and _is_writable(folder)):
        return ""
    return f"compiled code cannot be kept in {folder}: set {VARIABLE} to a folder that can be written"


def keep_caches() -> Path:
    """Let compiled code outlive the process: in $TORCHINDUCTOR_CACHE_DIR, or the user's cache directory.

    Where the user's cache directory cannot be written, code lies in a folder that goes with the process, and that is
    said. Raises `UserError` if $TORCHINDUCTOR_CACHE_DIR is set and cannot be written.
    """
    if reason := why_no_folder():
        raise UserError(f"{reason}, or give --compile eager")
    folder = cache_folder()
    if folder is None or not _is_writable(folder):
        folder = _for_this_process(folder or "~/.cache")
    os.environ[VARIABLE] = str(folder)
    return folder


def _chosen() -> str:
    """What the user has set; empty where that is nothing. Importing torch._dynamo, as the first call of a custom
    operator does, sets the variable too: to a temporary folder, which children of the process inherit."""
    folder = os.environ.get(VARIABLE, "")
    is_unasked = Path(folder).parent == Path(gettempdir()) and Path(folder).name.startswith(_UNASKED)
    return "" if is_unasked else folder


@cache
def _for_this_process(instead_of: Path | str) -> Path:
    """A folder that goes with the process, which is said once."""
    if is_first():
        notice(f"compiled code is not kept for the next run: {instead_of} cannot be written; set {VARIABLE}")
    folder = Path(mkdtemp(prefix=f"{_OURS}-"))  # for this user alone: what lies in it is run
    atexit.register(rmtree, folder, ignore_errors=True)
    return folder


def _is_writable(folder: Path) -> bool:
    """Whether it is there, or can be made, and takes files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
