"""From `--data NAME|PATH` to a data set: with all images decoded, as evaluations want it, or in another form."""

from pathlib import Path

from fastarat.common.console import notice
from fastarat.common.errors import UserError
from fastarat.data.formats import prepared
from fastarat.data.formats.beton import write as beton_write
from fastarat.data.formats.beton.storage import Storage
from fastarat.data.formats.find import FORMATS, find, require_apart
from fastarat.data.images.copies import warnings_of
from fastarat.data.images.dataset import Dataset
from fastarat.data.images.whole_sets import common_size, with_decoded_test


def open_dataset(data: str | Path, size: int | None = None) -> Dataset:
    """The data set that `data` names: 'digits', 'cifar10', 'cifar100', a name under `data_root()`, or a path.

    A path is a prepared set, an image folder, a tar of one, a CIFAR binary archive, an .npz file, a .beton, or a folder
    of shards. Stored images are decoded on first use and kept under `data_root()`; `size` resizes and crops them to
    size x size. Images are uint8 [N, H, W, C], labels int64 [N]. Raises `UserError` for what cannot be used.
    """
    return find(data).open(size)


def open_for_evaluation(data: str, image_size: tuple[int, int], share: float | None) -> Dataset:
    """As `open_dataset`, for a net that takes images of `image_size` (height, width).

    `share`: how much of the shorter side the net is shown, if its images were resized; None: they come as they are
    stored. Of stored images only the test split is decoded, and those that cannot be are named and left out.
    """
    dataset = _opened_for_evaluation(data, image_size, share)
    for line in warnings_of(dataset):
        notice(line)
    return dataset


def _opened_for_evaluation(data: str, image_size: tuple[int, int], share: float | None) -> Dataset:
    found = find(data)
    if found.format.stored is None or (share is None and found.is_decoded):
        return found.open()
    if found.format.read and (dataset := found.format.read(found.path)).image_shape[:2] == image_size:
        return dataset
    if found.format.decode and not found.is_one_by_one and share == 1:
        return found.open(image_size[0])
    stored = found.open_stored("skip")
    if share is None:
        return with_decoded_test(stored, common_size(stored.name, stored.stored_splits["test"]), 1.0)
    return with_decoded_test(stored, (image_size[1], image_size[0]), share)


def prepare(data: str, out: Path, size: int | None = None) -> Dataset:
    """Write what `data` names as the new prepared set `out`, outside of it, and open it. Raises as `open_dataset`."""
    require_apart(out, data)
    found = find(data)
    if found.format.decode:
        found.format.decode.prepare(found.path, out, size)
    else:
        prepared.write(found.open(size), out, data)
    return prepared.read(out)


def build(data: str, out: Path, storage: Storage) -> None:
    """Write what `data` names as the new .beton `out`, with its checksums beside it.

    Raises `UserError` for images that cannot be decoded and for a data set without 8-bit RGB images, `WorkError` if the
    disk is full.
    """
    storage.require()  # before hours of decoding
    require_apart(out, data)
    found = find(data)
    if found.format is FORMATS["beton"]:
        raise UserError(f"{found.path} is a .beton already: build from what it was made of")
    dataset = found.open_stored() if found.is_one_by_one else found.open()
    beton_write.build(dataset, out, storage, source=data)
