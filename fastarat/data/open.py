"""Data sets whose images are all decoded: what the resident loader and evaluations take."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from fastarat.common import console
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import as_file_name
from fastarat.data.formats import arrays, cifar, digits, image_folder, prepared
from fastarat.data.formats.archives import entries, is_compressed, stem
from fastarat.data.formats.find import Source, find
from fastarat.data.images.cache import CACHE, data_root
from fastarat.data.images.dataset import Dataset
from fastarat.data.images.decoding import DECODING
from fastarat.data.stored import common_size, decoded, for_evaluation, open_stored


def open_dataset(data: str, size: int | None = None) -> Dataset:
    """The data set that `data` names: 'digits', 'cifar10', 'cifar100', a name under `data_root()`, or a path.

    A path is a prepared set, an image folder, a tar of one, a CIFAR binary archive, an .npz file, a .beton, or a folder
    of shards. Stored images are decoded on first use and kept under `data_root()`; `size` resizes and crops them to
    size x size. Images are uint8 [N, H, W, C], labels int64 [N]. Raises `UserError` for what cannot be used.
    """
    source = find(data)
    dataset = _open(source, size)
    height, width = dataset.image_shape[:2]
    if size is not None and (height, width) != (size, size):
        raise UserError(f"{data} has images of {width}x{height}: only stored images can be resized (--size {size}).")
    return dataset


def open_for_evaluation(data: str, image_size: tuple[int, int], share: float | None) -> Dataset:
    """As `open_dataset`, for a net that takes images of `image_size` (height, width).

    `share`: how much of the shorter side the net is shown, if its images were resized; None: they come as they are
    stored. Of stored images only the test split is decoded, and those that cannot be are named and left out.
    """
    source = find(data)
    if source.kind in ("embedded", "cifar", "arrays") or (share is None and _is_decoded(source)):
        return open_dataset(data)
    if source.kind == "prepared" and (dataset := prepared.read(source.path)).image_shape[:2] == image_size:
        return dataset
    if is_compressed(source.path) and share == 1:
        return open_dataset(data, image_size[0])
    stored = open_stored(source, "skip")
    if share is None:
        width, height = common_size(stored.name, stored.test)
        return for_evaluation(stored, (height, width), 1.0)
    return for_evaluation(stored, image_size, share)


def _is_decoded(source: Source) -> bool:
    """Whether it is decoded already, or can only be as a whole."""
    if source.kind == "images":
        return is_compressed(source.path) or prepared.is_prepared(_kept(source.path, None))
    return source.kind == "prepared"


def prepare(data: str, out: Path, size: int | None = None) -> Dataset:
    """Write what `data` names as the new prepared set `out`, and open it. Raises as `open_dataset` does."""
    source = find(data)
    if source.kind == "images":
        image_folder.prepare(source.path, out, size)
    else:
        prepared.write(open_dataset(data, size), out, data)
    return prepared.read(out)


def _open(source: Source, size: int | None) -> Dataset:
    if source.kind == "embedded":
        return digits.load()
    if source.kind == "prepared":
        return prepared.read(source.path)
    if source.kind == "arrays":
        return arrays.read(source.path)
    if source.archive is not None:
        return cifar.read(source.path, source.archive)
    if source.kind in ("beton", "shards"):
        return decoded(open_stored(source), size)
    return _decoded_once(source.path, size)


def _decoded_once(path: Path, size: int | None) -> Dataset:
    kept = _kept(path, size)
    dataset = _whole(kept)
    if dataset is None:
        try:
            image_folder.prepare(path, kept, size)
        except (UserError, WorkError) as e:
            # Another process, started at the same time, may have been first.
            if not prepared.is_prepared(kept):
                if isinstance(e, WorkError):
                    raise WorkError(f"{e} FASTARAT_DATA may name another folder.") from None
                raise
        console.notice(f"Decoded {path} into {kept}; later runs start from there.")
    return dataset or prepared.read(kept)


def _whole(kept: Path) -> Dataset | None:
    """What is kept there, compared with its checksums each time; what is damaged goes."""
    if not os.path.lexists(kept):
        return None
    try:
        return prepared.read_whole(kept)
    except UserError as e:
        console.notice(f"{e} Its images are decoded again.")
        shutil.rmtree(kept, ignore_errors=True)
        return None


def _kept(path: Path, size: int | None) -> Path:
    """Where the decoded images of this folder or archive are kept."""
    return data_root() / CACHE / f"{as_file_name(stem(path))}-{_key(path, size)}"


def _key(path: Path, size: int | None) -> str:
    """Changes with the place, the files' sizes and times, and the size asked for."""
    files = [path]
    if path.is_dir():
        files = [path / entry.name for entry in entries(path) if entry.kind == "file"]
    digest = hashlib.sha256(json.dumps([DECODING, str(path.resolve()), size]).encode())
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"Cannot read {file}: {error.strerror}.") from error
        digest.update(os.fsencode(f"{file} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()[:16]
