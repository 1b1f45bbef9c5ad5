"""An image folder, or a tar of one: where each image lies, and all of them decoded once into the prepared form."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastarat.common import console
from fastarat.common.console import command, require_none
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import as_file_name, require_file
from fastarat.data.formats import cifar, prepared
from fastarat.data.formats.archives import Entry, entries, is_archive, is_compressed, stem
from fastarat.data.formats.class_folders import Layout, Place, survey
from fastarat.data.images.cache import data_root, key_of
from fastarat.data.images.copies import Contents, digest_of
from fastarat.data.images.damaged import LEAVE_OUT
from fastarat.data.images.dataset import MAX_VALUE, SPLITS, Dataset, Images, from_splits
from fastarat.data.images.decoding import Decoded, File, decode_all
from fastarat.data.images.stored import Sample, StoredImages

CHECK_SIZE = (8, 8)  # a check decodes every image but keeps none


def tells(path: Path) -> bool:
    """Whether it may be an image folder or a tar of one. Raises `UserError` for an unpacked CIFAR archive."""
    if path.is_dir():
        cifar.require_other_folder(path)
        return True
    return is_archive(path)


def outline(source: Path) -> tuple[int, tuple[int, int]]:
    """The number of training images, and the first image's (width, height)."""
    layout = survey(source)
    return layout.count("train"), layout.size or (0, 0)


def prepare(source: Path, out: Path, size: int | None) -> None:
    """Decode the images of `source` into the new prepared set `out`: uint8 [N, H, W, 3].

    With `size` the shorter side is resized to it (bicubic, antialiased) and the middle kept.
    Raises `UserError` for anything wrong in `source`, `WorkError` if `out` cannot be written.
    """
    if size is not None and size < 1:
        raise UserError(f"--size {size}: give the number of pixels, such as 128")
    layout = survey(source)
    require_none(source, layout.problems)
    width, height = (size, size) if size else layout.size or CHECK_SIZE
    with prepared.create(out) as folder:
        splits = {split: prepared.allocate(folder, split, layout.count(split), (height, width, 3)) for split in SPLITS}
        _fill(splits, source, layout, (width, height), resize=size is not None)
        prepared.seal(folder, stem(source), layout.classes, max_value=MAX_VALUE, source=str(source))


def _fill(splits: dict[str, Images], source: Path, layout: Layout, size: tuple[int, int], resize: bool) -> None:
    """Decode every image into its row; raises `UserError` if one cannot be, or has another size."""
    problems: list[str] = []
    sizes: set[tuple[int, int]] = set()
    count = 0
    for image in _decoded(source, _files(source, layout), len(layout.places), size, resize):
        count += 1
        problems += [image.problem] if image.problem else []
        sizes |= {image.size} if image.size else set()
        if image.pixels is not None:
            place = layout.places[image.name]
            splits[place.split].images[place.row] = image.pixels
            splits[place.split].labels[place.row] = place.label
    require_none(source, problems, "" if is_compressed(source) else LEAVE_OUT)
    if count != len(layout.places):
        raise UserError(f"{source} has changed while it was read: begin again")
    if not resize and len(sizes) > 1:
        smallest, *_, largest = sorted(sizes, key=lambda size: size[0] * size[1])
        span = f"from {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}"
        prepare = command("data", "prepare", source, "OUT", "--size", 128)
        fix = f"'fastarat train --size 128' brings them to one, or {prepare} once for all"
        raise UserError(f"{source}: images differ in size ({span}): {fix}")


def problems(source: Path) -> list[str]:
    """Everything wrong with the images of `source`, a line each: layout, what cannot be decoded, then copies."""
    layout, contents = survey(source), Contents()
    images = _decoded(source, _noted(source, layout, contents), len(layout.places), CHECK_SIZE, resize=True)
    return [*layout.problems, *(image.problem for image in images if image.problem), *contents.problems()]


def _noted(source: Path, layout: Layout, contents: Contents) -> Iterator[File]:
    """The files of `source`, of which `contents` takes note on their way."""
    for file in _files(source, layout):
        place = layout.places[file.name]
        contents.add(place.split, file.name, place.label, digest_of(file.content))
        yield file


def _decoded(source: Path, files: Iterator[File], count: int, size: tuple[int, int], resize: bool) -> Iterator[Decoded]:
    with console.progress(f"Decoding {source.name}", count) as advance:
        for image in decode_all(files, count, size, resize):
            yield image
            advance(1)


def _files(source: Path, layout: Layout) -> Iterator[File]:
    for entry in entries(source):
        if names := layout.names(entry):
            content = entry.read()
            yield from (File(name, content) for name in names)


def stored(source: Path) -> Dataset:
    """Where the images of `source` lie, in the order of their names, sizes still 0.

    Raises `UserError` for a compressed archive, and for whatever `survey` finds wrong.
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
    train, test = (_split(source, found, split) for split in SPLITS)
    return from_splits(stem(source), train, test, layout.classes)


def _split(source: Path, found: list[tuple[Place, Entry]], split: str) -> StoredImages:
    rows = sorted((pair for pair in found if pair[0].split == split), key=lambda pair: pair[0].row)
    if source.is_dir():
        samples = [Sample(entry.name, 0, _size(entry.path), place.label) for place, entry in rows]
        return StoredImages.of_samples([entry.path for _, entry in rows], np.arange(len(rows)), samples)
    samples = [Sample(entry.name, entry.offset, entry.length, place.label) for place, entry in rows]
    return StoredImages.of_samples([source], np.zeros(len(rows)), samples)


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; restore it, or remove it") from error
    require_file(path)
    return size


def is_decoded(source: Path) -> bool:
    """Whether its images are decoded already, as they are, or can only be decoded as a whole."""
    return is_compressed(source) or prepared.is_prepared(_kept(source, None))


def decoded_once(source: Path, size: int | None) -> Dataset:
    """What `prepare` makes of `source`, kept under `data_root()`. Raises as `prepare` does."""
    place = _kept(source, size)
    dataset = _whole(place)
    if dataset is None:
        try:
            prepare(source, place, size)
        except (UserError, WorkError) as error:
            # Another process, started at the same time, may have been first.
            if not prepared.is_prepared(place):
                if isinstance(error, WorkError):
                    raise WorkError(f"{error}; FASTARAT_DATA may name another folder") from error
                raise
        console.notice(f"decoded {source} into {place}; later runs start from there")
    return dataset or prepared.read(place)


def _whole(place: Path) -> Dataset | None:
    """What is kept there, compared with its checksums each time; what is damaged goes."""
    if not os.path.lexists(place):
        return None
    try:
        return prepared.read_whole(place)
    except UserError as error:
        console.notice(f"{error}; its images are decoded again")
        shutil.rmtree(place, ignore_errors=True)
        return None


def _kept(source: Path, size: int | None) -> Path:
    """Where the decoded images of this folder or archive are kept."""
    files = [entry.path for entry in entries(source) if entry.kind == "file"] if source.is_dir() else [source]
    key = key_of(files, str(source.resolve()), size)
    return data_root() / "prepared" / f"{as_file_name(stem(source))}-{key}"
