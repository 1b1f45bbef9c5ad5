"""An image folder, or a tar of one, decoded once into the prepared form."""

from collections.abc import Iterator
from pathlib import Path

from fastarat import console
from fastarat.data import prepared
from fastarat.data.decode import Decoded, decode_all
from fastarat.data.entries import entries, stem
from fastarat.data.layout import Layout, require_none, survey
from fastarat.errors import UserError

CHECK_SIZE = (8, 8)  # a check decodes every image but keeps none


def prepare(source: Path, out: Path, size: int | None) -> None:
    """Decode the images of `source` into the new prepared set `out`: uint8 [N, H, W, 3].

    With `size` the shorter side is resized to it (bicubic, antialiased) and the middle kept.
    Raises `UserError` for anything wrong in `source`, `WorkError` if `out` cannot be written.
    """
    layout = survey(source, measure=size is None)
    require_none(source, layout.problems)
    width, height = (size, size) if size else _common_size(source, layout)
    with prepared.create(out) as folder:
        shape = (height, width, 3)
        splits = {
            split: prepared.allocate(folder, split, layout.count(split), shape) for split in prepared.SPLITS
        }
        problems: list[str] = []
        for batch in _decoded(source, layout, (width, height)):
            problems += batch.problems
            for name, pixels in zip(batch.names, batch.pixels, strict=True):
                place = layout.places[name]
                splits[place.split].images[place.row] = pixels
                splits[place.split].labels[place.row] = place.label
        require_none(source, problems)
        prepared.seal(folder, stem(source), layout.classes, 255, str(source))


def problems(source: Path) -> list[str]:
    """Everything wrong with the images of `source`, a line each: layout, then what cannot be decoded."""
    layout = survey(source, measure=False)
    found = list(layout.problems)
    for batch in _decoded(source, layout, CHECK_SIZE):
        found += batch.problems
    return found


def _common_size(source: Path, layout: Layout) -> tuple[int, int]:
    if len(layout.sizes) > 1:
        smallest, *_, largest = sorted(layout.sizes, key=lambda size: size[0] * size[1])
        span = f"from {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}"
        raise UserError(
            f"{source}: images differ in size ({span}): choose one, "
            f"'fastarat data prepare {source} OUT --size 128'."
        )
    return next(iter(layout.sizes), CHECK_SIZE)  # none readable: decoding names them all


def _decoded(source: Path, layout: Layout, size: tuple[int, int]) -> Iterator[Decoded]:
    count = len(layout.places)
    files = ((entry.name, entry.read()) for entry in entries(source) if entry.name in layout.places)
    with console.progress(f"Decoding {source.name}", count) as advance:
        for batch in decode_all(files, count, size):
            yield batch
            advance(len(batch.names))
