"""What `--data NAME|PATH` means: where a data set lies, and how it is stored."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastarat.common.errors import UserError, unknown
from fastarat.common.files import expanded
from fastarat.data.formats import cifar, prepared, shards
from fastarat.data.formats.archives import ARCHIVE_SUFFIXES, is_archive, is_clutter, stem
from fastarat.data.images.cache import CACHES, data_root
from fastarat.data.images.damaged import readable

KNOWN = ("digits", *cifar.ARCHIVES)
ARRAYS_SUFFIX = ".npz"
BETON_SUFFIX = ".beton"
FILE_SUFFIXES = (ARRAYS_SUFFIX, BETON_SUFFIX)


@dataclass(frozen=True)
class Source:
    """A data set that was found, and how it is stored."""

    kind: Literal["embedded", "cifar", "prepared", "images", "arrays", "beton", "shards"]
    path: Path
    """Where it lies; meaningless for 'embedded'."""
    archive: cifar.Archive | None = None
    """Which CIFAR archive it is, for 'cifar'."""

    @property
    def name(self) -> str:
        """What a command would call it."""
        return "digits" if self.kind == "embedded" else str(self.path)


def find(data: str) -> Source:
    """Where `data` lies and how it is stored. Raises `UserError` with the way to get what is missing."""
    if data == "digits":
        return Source("embedded", Path())
    path = expanded(data)
    with readable(path):
        is_there = path.exists()
    if data in cifar.ARCHIVES or not is_there:
        path = _under_root(data)
    if path.is_dir():
        return Source(_kind_of_folder(path), path)
    if path.suffix == ARRAYS_SUFFIX:
        return Source("arrays", path)
    if path.suffix == BETON_SUFFIX:
        return Source("beton", path)
    if not is_archive(path):
        expected = ", ".join((*ARCHIVE_SUFFIXES, ARRAYS_SUFFIX, BETON_SUFFIX))
        raise UserError(f"{path} is not a data set: expected a folder or {expected}.")
    archive = cifar.recognise(path)
    return Source("cifar" if archive else "images", path, archive)


def _kind_of_folder(path: Path) -> Literal["prepared", "shards", "images"]:
    if prepared.is_prepared(path):
        return "prepared"
    if shards.is_shards(path):
        return "shards"
    cifar.require_other_folder(path)
    return "images"


def place_of(data: str) -> str:
    """What names the same data set from any folder: the whole path of one that is named by a path, else `data`."""
    path = expanded(data)
    return data if data in KNOWN or not path.exists() else str(path.absolute())


def names_under_root() -> list[str]:
    """The names that `find` accepts because something lies under `data_root()`, besides the known ones."""
    root = data_root()
    if not root.is_dir():
        return []
    with readable(root):
        found = [path for path in root.iterdir() if not path.name.startswith(".") and path.name not in CACHES]
        found = [path for path in found if not is_clutter(path.name)]
    published = {archive.filename for archive in cifar.ARCHIVES.values()}
    data_files = [path for path in found if is_archive(path) or path.suffix in FILE_SUFFIXES]
    kept = [path for path in found if path.is_dir() or (path in data_files and path.name not in published)]
    names = {stem(path).removesuffix(ARRAYS_SUFFIX).removesuffix(BETON_SUFFIX) for path in kept}
    return sorted(names - set(KNOWN))


def _under_root(name: str) -> Path:
    root = data_root()
    archive = cifar.ARCHIVES.get(name)
    filenames = [archive.filename] if archive else []
    filenames += [name, *(name + suffix for suffix in (*ARCHIVE_SUFFIXES, *FILE_SUFFIXES))]
    for filename in filenames:
        if (root / filename).exists() and filename not in ("", ".", "..", *CACHES):
            return root / filename
    if archive:
        raise UserError(f"{name} is not under {root} yet: run 'fastarat data fetch {name}'.")
    if "/" in name or Path(name).suffix in (*FILE_SUFFIXES, *ARCHIVE_SUFFIXES, ".gz", ".xz", ".bz2"):
        hint = " Of shards, give the folder that they are in." if set("{*?[") & set(name) else ""
        raise UserError(f"There is no file or folder {name}.{hint}")
    error = unknown("data set", name, [*KNOWN, *names_under_root()])
    raise UserError(f"{error} Names are looked up under {root} (FASTARAT_DATA); a path may be given instead.")
