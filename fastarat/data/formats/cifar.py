"""CIFAR-10 and CIFAR-100 from their binary archives, read straight from the tar; never a pickle."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastarat.common.errors import UserError
from fastarat.common.files import require_file
from fastarat.data.formats.archives import entries, is_archive
from fastarat.data.images.copies import problems_of
from fastarat.data.images.damaged import readable
from fastarat.data.images.dataset import Dataset, Images, from_splits, label_problem

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Archive:
    """A published archive and what is in it."""

    name: str
    filename: str
    md5: str
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    classes_file: str
    python_folder: str
    """What the version for Python has for `folder`: pickles."""
    python_files: tuple[str, ...]
    label_bytes: int
    """Labels before each image's pixels; the last one counts (CIFAR-100 has the coarse label first)."""

    @property
    def url(self) -> str:
        """Where the archive is published."""
        return f"https://www.cs.toronto.edu/~kriz/{self.filename}"


ARCHIVES = {
    "cifar10": Archive(
        name="cifar10",
        filename="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test_file="test_batch.bin",
        classes_file="batches.meta.txt",
        python_folder="cifar-10-batches-py",
        python_files=("data_batch_1", "test_batch"),
        label_bytes=1,
    ),
    "cifar100": Archive(
        name="cifar100",
        filename="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train_files=("train.bin",),
        test_file="test.bin",
        classes_file="fine_label_names.txt",
        python_folder="cifar-100-python",
        python_files=("train", "test", "meta"),
        label_bytes=2,
    ),
}


def recognise(path: Path) -> Archive | None:
    """Which CIFAR archive the tar file at `path` is, told by its top folder; None for any other.

    Raises `UserError` for the version for Python, which is never opened.
    """
    top = top_folder(path)
    require_not_python(path, top)
    return next((archive for archive in ARCHIVES.values() if archive.folder == top), None)


def top_folder(path: Path) -> str:
    """The top folder in the tar file at `path`, '' if it is empty. Raises `UserError` if it cannot be read."""
    first = next((entry for entry in entries(path) if entry.kind != "clutter"), None)
    return first.name.split("/")[0] if first else ""


def require_not_python(path: Path, name: str) -> None:
    """Raise `UserError` with the fix if a folder of this name, at `path` or in it, is CIFAR's version for Python."""
    for archive in ARCHIVES.values():
        if name == archive.python_folder:
            raise UserError(_is_for_python(path, archive))


def require_other_folder(path: Path) -> None:
    """Raise `UserError` with the fix if the folder `path` is an unpacked CIFAR archive, or holds one."""
    for archive in ARCHIVES.values():
        is_python = all((path / file).is_file() for file in archive.python_files)
        if is_python or path.name == archive.python_folder or (path / archive.python_folder).is_dir():
            raise UserError(_is_for_python(path, archive))
        if (path / archive.test_file).is_file() or (path / archive.folder).is_dir():
            raise UserError(
                f"{path} is an unpacked {archive.filename}: give the archive itself, "
                f"which 'fastarat data fetch {archive.name}' brings"
            )


def _is_for_python(path: Path, archive: Archive) -> str:
    return (
        f"{path} is the version of {archive.name} for Python: pickles, which are code, and are never opened. "
        f"'fastarat data fetch {archive.name}' brings the binary version ({archive.filename})"
    )


def tells(path: Path) -> bool:
    """Whether it is a tar file of CIFAR's. Raises as `recognise` does."""
    return is_archive(path) and not path.is_dir() and recognise(path) is not None


def problems(path: Path) -> list[str]:
    """Everything wrong with the archive at `path`, a line each: another checksum, what cannot be read, copies."""
    found = []
    for examine in (lambda: require_checksum(path, _archive(path)), lambda: found.extend(problems_of(read(path)))):
        try:
            examine()
        except UserError as error:
            found.append(str(error))
    return found


def require_checksum(path: Path, archive: Archive, fix: str = "") -> None:
    """Raise `UserError` unless `path` is the published archive. `fix`: what to do then, other than to fetch it."""
    again = f"fastarat data fetch {archive.name}"
    require_file(path)
    with readable(path), path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5:
        raise UserError(
            f"{path} is not the published {archive.filename} (MD5 {found}, expected {archive.md5}): "
            f"{fix or f'remove it and run {again!r} again'}"
        )


def _archive(path: Path) -> Archive:
    archive = recognise(path)
    if archive is None:
        raise UserError(f"{path} is no CIFAR archive")
    return archive


def read(path: Path) -> Dataset:
    """Images uint8 [N, 32, 32, 3]. Raises `UserError` naming the file in the archive that is wrong."""
    archive = _archive(path)
    files = _contents(path, archive)
    names = files[archive.classes_file].decode("utf-8", "replace").split("\n")
    classes = tuple(name.strip() for name in names if name.strip())
    train = [_records(path, name, files.pop(name), archive, len(classes)) for name in archive.train_files]
    test = _records(path, archive.test_file, files.pop(archive.test_file), archive, len(classes))
    joined = Images(np.concatenate([part.images for part in train]), np.concatenate([part.labels for part in train]))
    return from_splits(archive.name, joined, test, classes)


def _contents(path: Path, archive: Archive) -> dict[str, bytes]:
    wanted = {*archive.train_files, archive.test_file, archive.classes_file}
    found = {}
    for entry in entries(path):
        name = entry.name.removeprefix(archive.folder + "/")
        if name in wanted and entry.kind == "file":
            if name in found:
                raise UserError(f"{path} has {name} twice: fetch the published archive again")
            found[name] = entry.read()
    missing = sorted(wanted - found.keys())
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}: fetch the published archive again")
    return found


def _records(path: Path, name: str, content: bytes, archive: Archive, classes: int) -> Images:
    """One file's records: the label bytes, then 1,024 red, 1,024 green and 1,024 blue bytes."""
    length = archive.label_bytes + PIXELS
    if not content or len(content) % length:
        raise UserError(f"{path}: {name} has {len(content)} bytes, not a multiple of {length}; fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    labels = records[:, archive.label_bytes - 1].astype(np.int64)
    problem = label_problem(labels, classes)
    if problem:
        raise UserError(f"{path}: {name}: {problem}; fetch it again")
    planes = records[:, archive.label_bytes :].reshape(-1, 3, 32, 32)
    return Images(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)
