"""Where each image of an image folder or a tar archive lies, so that any of them can be read at any time."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fastarat.common.advice import command
from fastarat.common.errors import UserError
from fastarat.common.files import require_file
from fastarat.common.problems import require_none
from fastarat.data.formats.archives import Entry, entries, is_compressed
from fastarat.data.formats.class_folders import Layout, Place, survey
from fastarat.data.images.stored import StoredImages


def index_images(source: Path) -> tuple[StoredImages, StoredImages, tuple[str, ...]]:
    """Training and test images of `source` in the order of their names, sizes still 0, and the classes.

    Raises `UserError` for a compressed archive, and for whatever `layout.survey` finds wrong.
    """
    if is_compressed(source):
        raise UserError(
            f"{source} is compressed, so that its images can only be read in order: unpack it, or make a prepared set "
            f"({command('data', 'prepare', source, 'OUT')})"
        )
    layout = survey(source)
    require_none(source, layout.problems)
    found = [
        (layout.places[name], replace(entry, name=name)) for entry in entries(source) for name in layout.names(entry)
    ]
    if len(found) != len(layout.places):
        raise UserError(f"{source} has changed while it was read: begin again")
    train, test = (_split(source, layout, found, split) for split in ("train", "test"))
    return train, test, layout.classes


def _split(source: Path, layout: Layout, found: list[tuple[Place, Entry]], split: str) -> StoredImages:
    rows = sorted((pair for pair in found if pair[0].split == split), key=lambda pair: pair[0].row)
    if source.is_dir():
        paths = tuple(str(entry.path) for _, entry in rows)
        lengths = [_size(entry.path) for _, entry in rows]
    else:
        paths, lengths = (str(source),), [entry.length for _, entry in rows]
    count = len(rows)
    return StoredImages(
        paths,
        np.arange(count, dtype=np.int32) if source.is_dir() else np.zeros(count, np.int32),
        np.array([entry.offset for _, entry in rows], np.int64),
        np.array(lengths, np.int64),
        np.zeros(count, bool),
        np.zeros((count, 2), np.int32),
        np.array([place.label for place, _ in rows], np.int64),
        tuple(entry.name for _, entry in rows),
    )


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as e:
        raise UserError(f"Cannot read {path}: {e.strerror}; restore it, or remove it.") from None
    require_file(path)
    return size
