"""What is in a data set, and what is wrong with it."""

from pathlib import Path
from typing import Any

from fastarat.common.errors import UserError
from fastarat.data.formats.find import KNOWN, Found, find, names_under_root
from fastarat.data.images import copies
from fastarat.data.images.dataset import Dataset, class_problems, described
from fastarat.data.images.whole_sets import one_size_of
from fastarat.data.tools import sheet


def check(data: str) -> list[str]:
    """Every problem of the data set, a line each; empty if it is whole.

    Prepared sets: every file's SHA-256, shapes, labels. Image folders and tars: every image is decoded.
    CIFAR archives: checksum and structure. Arrays: kinds, shapes, labels. All: images that are in both splits, or in
    two classes. Raises `UserError` if there is no such set.
    """
    found = find(data)
    try:
        if found.format.problems:
            return found.format.problems(found.path)
        dataset = found.open()
        return class_problems(len(dataset.classes)) + copies.problems_of(dataset)
    except UserError as error:  # what cannot be read at all has this one problem
        return [str(error)]


def info(data: str) -> dict[str, Any]:
    """What `data` holds, as `described` gives it; where sizes may differ, their span instead of a shape.

    Raises as `open_dataset` does.
    """
    found = find(data)
    return found.format.info(found.path) if found.format.info else described(_as_it_is(found))


def draw(data: str, out: Path) -> None:
    """Some training images of each class of `data` in one PNG. Raises `WorkError` if it cannot be written."""
    dataset = _as_it_is(find(data))
    sheet.write(dataset.train, dataset.classes, out, max_value=dataset.max_value)


def listing() -> list[dict[str, str]]:
    """Known names and what lies under `data_root()`: the `name` and `state` of each."""
    return [{"name": name, "state": _state(name)} for name in (*KNOWN, *names_under_root())]


def _state(name: str) -> str:
    try:
        found = find(name)
    except UserError as error:
        return str(error)
    return found.format.label if found.name in KNOWN else f"{found.format.label} {found.path}"


def _as_it_is(found: Found) -> Dataset:
    """Decoded where it is, or where image files are all whole and of one size; else with its images as they lie."""
    if found.format.read or not found.is_one_by_one:
        return found.open()
    stored = found.open_stored("skip")
    is_whole = one_size_of(*stored.stored_splits.values()) and not stored.num_skipped
    return found.open() if found.format.decode and is_whole else stored
