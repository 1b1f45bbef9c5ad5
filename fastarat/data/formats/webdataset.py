"""The samples of a WebDataset tar: an image (jpg, jpeg, png) each, and the number of its class as text (cls).

An image and a class belong together if their names are equal up to the last dot, or if the class has the image's name
up to an earlier dot and no image of its own. (WebDataset itself looks at the first dot alone, so that of `a.v1.jpg` and
`a.v2.jpg` one would be lost.) Whatever else a sample has is left alone.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fastarat.data.formats.archives import LARGEST, Entry, entries
from fastarat.data.images.stored import Sample

IMAGES = ("jpg", "jpeg", "png")
LABEL = "cls"
MOST_LABEL = 40
"""bytes of a number, and of what may stand around it"""


class Found(NamedTuple):
    """What a tar holds of samples, by name up to the last dot."""

    images: dict[str, list[Entry]]
    labels: dict[str, int | str]
    """or what is wrong with one"""


def samples(path: Path, shard: str, problems: list[str]) -> Iterator[Sample]:
    """Every sample of the tar at `path`, which messages call `shard`; whatever is wrong with one is added to
    `problems`. Raises `UserError` if the tar cannot be read."""
    found = _found(path, shard, problems)
    pairs: dict[str, list[Entry]] = defaultdict(list)
    for stem, images in found.images.items():
        # Under which name an image has a class; its own if there is none.
        owner = next((name for name in (stem, *_shorter(stem)) if name in found.labels), stem)
        if owner == stem or owner not in found.images:
            pairs[owner].extend(images)
    for stem, images in pairs.items():
        label = found.labels.get(stem, f"has an image and no class (.{LABEL})")
        if len(images) > 1:
            problems.append(f"{shard}: {stem} has {len(images)} images")
        elif isinstance(label, str):
            problems.append(f"{shard}: {stem} {label}")
        elif images[0].length > LARGEST:
            problems.append(f"{shard}: {images[0].name} has {images[0].length:,} bytes, more than any image")
        else:
            yield Sample(f"{shard}/{images[0].name}", images[0].offset, images[0].length, label)
    for stem in sorted(found.labels.keys() - pairs.keys()):
        if not any(name in pairs and name in found.labels for name in _shorter(stem)):
            problems.append(f"{shard}: {stem} has a class and no image ({', '.join(IMAGES)})")


def _found(path: Path, shard: str, problems: list[str]) -> Found:
    images: dict[str, list[Entry]] = defaultdict(list)
    labels: dict[str, int | str] = {}
    files: dict[str, Entry] = {}
    for entry in entries(path):
        stem, _, kind = entry.name.rpartition(".")
        if kind.lower() not in (*IMAGES, LABEL) or entry.kind in ("folder", "clutter"):
            continue
        first = files.get(entry.target) if entry.kind == "hard link" else entry
        if first is None or first.kind != "file":
            problems.append(f"{shard}: {entry.name} is a {entry.kind} and no file")
            continue
        files[entry.name] = replace(first, name=entry.name)
        if kind.lower() != LABEL:
            images[stem].append(files[entry.name])
        else:
            if stem in labels:
                problems.append(f"{shard}: {stem} has two classes")
            labels[stem] = _label(first)
    return Found(images, labels)


def _shorter(stem: str) -> Iterator[str]:
    """The names that are left of it without its last dots and what follows them; a dot that it begins with stays."""
    folder, slash, file = stem.rpartition("/")
    while "." in file[1:]:
        file = file.rpartition(".")[0]
        yield folder + slash + file


def _label(entry: Entry) -> int | str:
    """The class, or what is wrong with it."""
    if entry.length > MOST_LABEL:
        return f"has a class of {entry.length:,} bytes, which is not a number from 0"
    text = entry.read().decode("utf-8", "replace").strip()
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else f"has the class {text!r}, which is not a number from 0"
