"""An image folder, or a tar of one, decoded once into the prepared form."""

from collections.abc import Iterator
from pathlib import Path

from fastarat.common import console
from fastarat.common.advice import command
from fastarat.common.errors import UserError
from fastarat.common.problems import require_none
from fastarat.data.formats import prepared
from fastarat.data.formats.archives import entries, stem
from fastarat.data.formats.class_folders import Layout, survey
from fastarat.data.images.dataset import Images
from fastarat.data.images.decoding import Decoded, File, decode_all

CHECK_SIZE = (8, 8)  # a check decodes every image but keeps none


def prepare(source: Path, out: Path, size: int | None) -> None:
    """Decode the images of `source` into the new prepared set `out`: uint8 [N, H, W, 3].

    With `size` the shorter side is resized to it (bicubic, antialiased) and the middle kept.
    Raises `UserError` for anything wrong in `source`, `WorkError` if `out` cannot be written.
    """
    if size is not None and size < 1:
        raise UserError(f"--size {size}: give the number of pixels, such as 128.")
    layout = survey(source)
    require_none(source, layout.problems)
    width, height = (size, size) if size else layout.size or CHECK_SIZE
    with prepared.create(out) as folder:
        splits = {
            split: prepared.allocate(folder, split, layout.count(split), (height, width, 3))
            for split in prepared.SPLITS
        }
        _fill(splits, source, layout, (width, height), resize=size is not None)
        prepared.seal(folder, stem(source), layout.classes, 255, str(source))


def _fill(splits: dict[str, Images], source: Path, layout: Layout, size: tuple[int, int], resize: bool) -> None:
    """Decode every image into its row; raises `UserError` if one cannot be, or has another size."""
    problems: list[str] = []
    sizes: set[tuple[int, int]] = set()
    count = 0
    for image in _decoded(source, layout, size, resize):
        count += 1
        problems += [image.problem] if image.problem else []
        sizes |= {image.size} if image.size else set()
        if image.pixels is not None:
            place = layout.places[image.name]
            splits[place.split].images[place.row] = image.pixels
            splits[place.split].labels[place.row] = place.label
    require_none(source, problems)
    if count != len(layout.places):
        raise UserError(f"{source} has changed while it was read: begin again")
    if not resize:
        _require_one_size(source, sizes)


def problems(source: Path) -> list[str]:
    """Everything wrong with the images of `source`, a line each: layout, then what cannot be decoded."""
    layout = survey(source)
    found = list(layout.problems)
    for image in _decoded(source, layout, CHECK_SIZE, resize=True):
        found += [image.problem] if image.problem else []
    return found


def _require_one_size(source: Path, sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        smallest, *_, largest = sorted(sizes, key=lambda size: size[0] * size[1])
        span = f"from {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}"
        prepare = command("data", "prepare", source, "OUT", "--size", 128)
        raise UserError(f"{source}: images differ in size ({span}): choose one, {prepare}.")


def _decoded(source: Path, layout: Layout, size: tuple[int, int], resize: bool) -> Iterator[Decoded]:
    count = len(layout.places)
    with console.progress(f"Decoding {source.name}", count) as advance:
        for image in decode_all(_files(source, layout), count, size, resize):
            yield image
            advance(1)


def _files(source: Path, layout: Layout) -> Iterator[File]:
    for entry in entries(source):
        if names := layout.names(entry):
            content = entry.read()
            yield from (File(name, content) for name in names)
