"""What `--data NAME|PATH` means."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastarat import console
from fastarat.data import arrays, cifar, digits, image_folder, prepared
from fastarat.data.dataset import Dataset
from fastarat.data.entries import ARCHIVE_SUFFIXES, entries, is_archive, stem
from fastarat.errors import UserError, WorkError, unknown

KNOWN = ("digits", *cifar.ARCHIVES)
CACHE = "prepared"
ARRAYS_SUFFIX = ".npz"


@dataclass(frozen=True)
class Source:
    """A data set that was found, and how it is stored."""

    kind: Literal["embedded", "cifar", "prepared", "images", "arrays"]
    path: Path
    """Where it lies; meaningless for 'embedded'."""
    archive: cifar.Archive | None = None
    """Which CIFAR archive it is, for 'cifar'."""


def data_root() -> Path:
    """Where named data sets lie: $FASTARAT_DATA, else ~/.cache/fastarat."""
    chosen = os.environ.get("FASTARAT_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "fastarat"


def open_dataset(data: str, size: int | None = None) -> Dataset:
    """The data set that `data` names: 'digits', 'cifar10', 'cifar100', a name under `data_root()`, or a path.

    A path is a prepared set, an image folder, a tar of one, a CIFAR binary archive, or an .npz file. Image folders are
    decoded on first use and kept under `data_root()`; `size` resizes and crops them to size x size.
    Images are uint8 [N, H, W, C], labels int64 [N]. Raises `UserError` for what cannot be used.
    """
    source = find(data)
    dataset = _open(source, size)
    height, width = dataset.train.images.shape[1:3]
    if size is not None and (height, width) != (size, size):
        raise UserError(f"{data} has images of {width}x{height}: only image folders can be resized (--size {size}).")
    return dataset


def prepare(data: str, out: Path, size: int | None = None) -> Dataset:
    """Write what `data` names as the new prepared set `out`, and open it. Raises as `open_dataset` does."""
    source = find(data)
    if source.kind == "images":
        image_folder.prepare(source.path, out, size)
    else:
        prepared.write(open_dataset(data, size), out, data)
    return prepared.read(out)


def find(data: str) -> Source:
    """Where `data` lies and how it is stored. Raises `UserError` with the way to get what is missing."""
    if data == "digits":
        return Source("embedded", Path())
    path = Path(data).expanduser()
    if data in cifar.ARCHIVES or not path.exists():
        path = _under_root(data)
    if path.suffix == ".beton":
        raise UserError(f"{path}: FFCV files are not read by this version; give the image folder instead.")
    if path.is_dir():
        return Source("prepared" if prepared.is_prepared(path) else "images", path)
    if path.suffix == ARRAYS_SUFFIX:
        return Source("arrays", path)
    if not is_archive(path):
        expected = ", ".join((*ARCHIVE_SUFFIXES, ARRAYS_SUFFIX))
        raise UserError(f"{path} is not a data set: expected a folder or {expected}.")
    archive = cifar.recognise(path)
    return Source("cifar" if archive else "images", path, archive)


def names_under_root() -> list[str]:
    """The names that `find` accepts because something lies under `data_root()`, besides the known ones."""
    root = data_root()
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if not path.name.startswith(".") and path.name != CACHE]
    published = {archive.filename for archive in cifar.ARCHIVES.values()}
    data_files = [path for path in found if is_archive(path) or path.suffix == ARRAYS_SUFFIX]
    kept = [path for path in found if path.is_dir() or (path in data_files and path.name not in published)]
    return sorted({stem(path).removesuffix(ARRAYS_SUFFIX) for path in kept} - set(KNOWN))


def _under_root(name: str) -> Path:
    root = data_root()
    archive = cifar.ARCHIVES.get(name)
    filenames = [archive.filename] if archive else []
    filenames += [name, *(name + suffix for suffix in (*ARCHIVE_SUFFIXES, ARRAYS_SUFFIX))]
    for filename in filenames:
        if (root / filename).exists() and filename not in ("", ".", "..", CACHE):
            return root / filename
    if archive:
        raise UserError(f"{name} is not under {root} yet: run 'fastarat data fetch {name}'.")
    if "/" in name or Path(name).suffix in (".beton", ARRAYS_SUFFIX, *ARCHIVE_SUFFIXES, ".gz", ".xz"):
        raise UserError(f"There is no file or folder {name}.")
    error = unknown("data set", name, [*KNOWN, *names_under_root()])
    raise UserError(f"{error} Names are looked up under {root} (FASTARAT_DATA); a path may be given instead.")


def _open(source: Source, size: int | None) -> Dataset:
    if source.kind == "embedded":
        return digits.load()
    if source.kind == "prepared":
        return prepared.read(source.path)
    if source.kind == "arrays":
        return arrays.read(source.path)
    if source.archive is not None:
        return cifar.read(source.path, source.archive)
    return _decoded_once(source.path, size)


def _decoded_once(path: Path, size: int | None) -> Dataset:
    kept = data_root() / CACHE / f"{stem(path)}-{_key(path, size)}"
    if not prepared.is_prepared(kept):
        try:
            image_folder.prepare(path, kept, size)
        except (UserError, WorkError):
            # Another process, started at the same time, may have been first.
            if not prepared.is_prepared(kept):
                raise
        console.notice(f"Decoded {path} into {kept}; later runs start from there.")
    return prepared.read(kept)


def _key(path: Path, size: int | None) -> str:
    """Changes with the place, the files' sizes and times, and the size asked for."""
    files = [path]
    if path.is_dir():
        files = [path / entry.name for entry in entries(path) if entry.kind == "file"]
    digest = hashlib.sha256(json.dumps([str(path.resolve()), size]).encode())
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"Cannot read {file}: {error.strerror}.") from error
        digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
