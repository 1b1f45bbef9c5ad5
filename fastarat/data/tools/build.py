"""`data build`: any data set as a .beton."""

from pathlib import Path

from fastarat.common.errors import UserError
from fastarat.data.formats.beton import write as beton_write
from fastarat.data.formats.beton.storage import Mode, Storage
from fastarat.data.formats.beton.write import Contents
from fastarat.data.formats.find import Source, find
from fastarat.data.loading.choose import reads_one_by_one
from fastarat.data.open import open_dataset
from fastarat.data.stored import open_stored


def build(data: str, out: Path, mode: Mode, longest_side: int | None, quality: int) -> None:
    """Write what `data` names as the new .beton `out`, with its checksums beside it.

    `mode`, `longest_side` (pixels) and `quality`: see `Storage`. Raises `UserError` for images that cannot be decoded
    and for a data set without 8-bit RGB images, `WorkError` if the disk is full.
    """
    storage = Storage(mode, longest_side, quality)
    storage.require()  # before hours of decoding
    source = find(data)
    if source.kind == "beton":
        raise UserError(f"{source.path} is a .beton already: build from what it was made of")
    beton_write.build(_contents(data, source), out, storage)


def _contents(data: str, source: Source) -> Contents:
    if reads_one_by_one(source):
        stored = open_stored(source)
        return Contents(stored.name, stored.train, stored.test, stored.classes, 255, data)
    dataset = open_dataset(data)
    return Contents(dataset.name, dataset.train, dataset.test, dataset.classes, dataset.max_value, data)
