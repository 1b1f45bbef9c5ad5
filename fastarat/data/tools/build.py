"""`data build`: any data set as a .beton."""

from pathlib import Path

from fastarat.common.errors import UserError
from fastarat.data.formats.beton import write as beton_write
from fastarat.data.formats.beton.storage import Storage
from fastarat.data.formats.find import FORMATS, find


def build(data: str, out: Path, storage: Storage) -> None:
    """Write what `data` names as the new .beton `out`, with its checksums beside it.

    Raises `UserError` for images that cannot be decoded and for a data set without 8-bit RGB images, `WorkError` if the
    disk is full.
    """
    storage.require()  # before hours of decoding
    found = find(data)
    if found.format is FORMATS["beton"]:
        raise UserError(f"{found.path} is a .beton already: build from what it was made of")
    dataset = found.open_stored() if found.is_one_by_one else found.open()
    beton_write.build(dataset, out, storage, source=data)
