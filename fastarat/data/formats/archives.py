"""The files of a folder or a tar archive, one after the other; nothing is ever unpacked to disk."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from fastarat.common.console import one_line
from fastarat.common.errors import UserError
from fastarat.common.files import require_file
from fastarat.data.formats import compression, tar
from fastarat.data.images.damaged import Damaged, readable

ARCHIVE_SUFFIXES = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".tar.bz2")
DEEPEST = 4  # top/split/class/file; also what ends a loop of links
LARGEST = 1 << 30
"""bytes of a file that is read into memory: more than any image or part of CIFAR has"""
CLUTTER = {
    "__macosx",
    ".ds_store",
    ".localized",
    ".spotlight-v100",
    ".trashes",
    ".fseventsd",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    ".ipynb_checkpoints",
}
"""what systems and tools leave in the folders of their users, in lower case"""


@dataclass(frozen=True)
class Entry:
    """A file, folder or link, named relative to the root with '/' between the parts."""

    name: str
    kind: Literal["file", "folder", "link", "hard link", "device", "clutter"]
    read: Callable[[], bytes]
    """The file's bytes; in an archive only until the next entry is asked for. Raises `UserError`."""
    path: Path
    """The file itself, or the archive it is in."""
    offset: int = 0
    """Where it begins there, in bytes; in a compressed archive meaningless."""
    length: int = 0
    """Its number of bytes; 0 for a folder, or a file of one, which has its size itself."""
    target: str = ""
    """For a hard link in an archive: the name of the file that it stands for."""


def entries(source: Path) -> Iterator[Entry]:
    """Every entry of a folder (sorted) or tar archive (in its own order, read once from front to back).

    What is in a folder of clutter is clutter too. Raises `UserError` where the archive is damaged or ends early, which
    is told after its last entry at the latest, or something cannot be read.
    """
    return _folder_entries(source, "", 1) if source.is_dir() else _tar_entries(source)


def is_clutter(name: str) -> bool:
    """Whether it is what macOS, Windows and others leave in folders, and no file of anybody's."""
    parts = name.split("/")
    return parts[-1].startswith("._") or any(part.lower() in CLUTTER for part in parts)


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
    with readable(folder), os.scandir(folder) as found:
        items = sorted(found, key=lambda item: item.name)
    for item in items:
        name, path = prefix + item.name, Path(item.path)
        kind = "clutter" if is_clutter(item.name) else "folder" if item.is_dir() else "file"
        yield Entry(name, kind, partial(_read_file, path), path)
        if kind == "folder" and depth < DEEPEST:
            yield from _folder_entries(path, name + "/", depth + 1)


def _read_file(path: Path) -> bytes:
    with readable(path):
        size = path.stat().st_size
    require_file(path)
    _require_small(size, str(path))
    with readable(path):
        return path.read_bytes()


def _require_small(size: int, name: str) -> None:
    if size > LARGEST:
        raise UserError(f"{one_line(name)} has {size:,} bytes, more than any image: remove it")


def _tar_entries(path: Path) -> Iterator[Entry]:
    require_file(path)
    with readable(path), path.open("rb") as file:
        beginning = file.read(8)
        file.seek(0)
        if not beginning:
            raise Damaged("it is empty")
        if is_compressed(path):
            # A stream: seeking back in it would decompress it from the start again.
            archive = tar.Unpacked(compression.unpacked(file))
        elif compression.is_compressed(beginning):
            raise UserError(f"{path} is compressed, which its name does not say: unpack it with gzip, xz or bzip2 -d")
        else:
            archive = tar.Plain(file)
        for member in tar.members(archive):
            if member.name:
                kind = "clutter" if is_clutter(member.name) else member.kind
                read = partial(_read_member, path, archive, member)
                yield Entry(member.name, kind, read, path, member.offset, member.size, member.target)


def _read_member(path: Path, archive: tar.Archive, member: tar.Member) -> bytes:
    """The bytes of a member; those of a stream can be read once."""
    _require_small(member.size, f"{path}: {member.name}")
    with readable(path):
        return archive.read(member.offset, member.size)
