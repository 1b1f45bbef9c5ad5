"""The files of a folder or a tar archive, one after the other; nothing is ever unpacked to disk."""

import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from fastarat.errors import UserError

ARCHIVE_SUFFIXES = (".tar", ".tar.xz", ".tar.gz", ".tgz")
DEEPEST = 4  # top/split/class/file; also what ends a loop of links


@dataclass(frozen=True)
class Entry:
    """A file, folder or link, named relative to the root with '/' between the parts."""

    name: str
    kind: Literal["file", "folder", "link"]
    read: Callable[[], bytes]
    """The file's bytes; in an archive only until the next entry is asked for. Raises `UserError`."""
    path: Path
    """The file itself, or the archive it is in."""
    offset: int = 0
    """Where it begins there, in bytes; in a compressed archive meaningless."""
    length: int = 0
    """Its number of bytes; 0 for a folder, or a file of one, which has its size itself."""


def entries(source: Path) -> Iterator[Entry]:
    """Every entry of a folder (sorted) or tar archive (in its own order, read once from front to back).

    Raises `UserError` where the archive is damaged or ends early, or something cannot be read.
    """
    return _folder_entries(source, "", 1) if source.is_dir() else _tar_entries(source)


def is_archive(path: Path) -> bool:
    """Whether the name is that of a tar archive."""
    return path.name.endswith(ARCHIVE_SUFFIXES)


def is_compressed(path: Path) -> bool:
    """Whether it is an archive in which no file can be reached without reading all before it."""
    return is_archive(path) and path.suffix != ".tar"


def stem(path: Path) -> str:
    """The name without an archive's suffix: `photos.tar.xz` → `photos`."""
    suffix = next((s for s in ARCHIVE_SUFFIXES if path.name.endswith(s)), "")
    return path.name.removesuffix(suffix)


def _folder_entries(folder: Path, prefix: str, depth: int) -> Iterator[Entry]:
    with _readable(folder), os.scandir(folder) as found:
        items = sorted(found, key=lambda item: item.name)
    for item in items:
        name, path = prefix + item.name, Path(item.path)
        yield Entry(name, "folder" if item.is_dir() else "file", partial(_read_file, path), path)
        if item.is_dir() and depth < DEEPEST:
            yield from _folder_entries(path, name + "/", depth + 1)


def _read_file(path: Path) -> bytes:
    with _readable(path):
        return path.read_bytes()


def _tar_entries(path: Path) -> Iterator[Entry]:
    # A compressed archive is a stream: seeking back in it would decompress it from the start again.
    mode = "r:" if path.suffix == ".tar" else "r|*"
    with _readable(path), tarfile.open(path, mode) as tar:
        while (member := tar.next()) is not None:
            # tarfile would remember every member of a long archive.
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            name = member.name.removeprefix("./")
            if name != ".":
                yield Entry(
                    name, _kind(member), partial(_read_member, path, tar, member), path, member.offset_data, member.size
                )
        _require_end(tar)


def _kind(member: tarfile.TarInfo) -> Literal["file", "folder", "link"]:
    if member.isdir():
        return "folder"
    return "file" if member.isreg() else "link"


def _read_member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with _readable(path):
        content = tar.extractfile(member)
        return content.read() if content else b""


def _require_end(tar: tarfile.TarFile) -> None:
    """tarfile takes an archive cut between two members for a whole one, which ends with a zero block."""
    if tar.fileobj is None or tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}): copy or download it again.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
