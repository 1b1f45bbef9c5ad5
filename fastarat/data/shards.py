"""Data sets in shards: WebDataset's tars and TFRecords, many images in each of a few large files.

`train*`, `test*` and `val*` (`validation*`) files in one folder, or in folders of these names. In a tar, members whose
names are equal up to the first dot are a sample: one image (jpg, jpeg, png), and the number of its class as text
(cls); whatever else a sample has is left alone. A `classes.txt` beside the shards has the names of the classes, a line
each.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastarat import console
from fastarat.data import tfrecord
from fastarat.data.encoded import EncodedSet
from fastarat.data.entries import Entry, entries
from fastarat.data.layout import require_none
from fastarat.data.pool import in_order
from fastarat.errors import UserError

SPLITS = {"train": "train", "test": "test", "validation": "test", "val": "test"}
SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?![a-z])")
IS_TAR = re.compile(r"\.tar$")
IS_TFRECORD = re.compile(r"\.tfrecords?$|-\d{5}-of-\d{5}$")
OF_SEVERAL = re.compile(r"(.*)-(\d{5})-of-(\d{5})(.*)")
CLASSES_FILE = "classes.txt"
IMAGES = ("jpg", "jpeg", "png")
LABEL = "cls"
MUCH = 2**26
"""bytes that one process would read for some seconds: the checksums of TFRecords are over all that they hold"""


class Sample(NamedTuple):
    """An image in a shard."""

    name: str
    offset: int
    length: int
    label: int


class Shard(NamedTuple):
    """What is in a shard."""

    samples: list[Sample]
    problems: list[str]


class Survey(NamedTuple):
    """What is in a folder of shards."""

    paths: dict[str, list[Path]]
    """by split: 'train' and 'test'"""
    shards: dict[str, list[Shard]]
    missing: list[str]
    """a line for each shard that is not there, of those that are numbered"""

    @property
    def problems(self) -> list[str]:
        """What is wrong with the shards and their samples, a line each."""
        return self.missing + [line for part in self.shards.values() for shard in part for line in shard.problems]


def is_shards(folder: Path) -> bool:
    """Whether `folder` holds shards; only names are looked at."""
    return next(_shards(folder), None) is not None


def index(folder: Path) -> tuple[EncodedSet, EncodedSet, tuple[str, ...]]:
    """Training and test images in the order of the shards, sizes still 0, and the classes.

    Classes are the labels of the training images in order. Raises `UserError` for whatever `survey` finds wrong, and
    for labels that do not fit together.
    """
    found = survey(folder)
    require_none(folder, found.problems)
    return assemble(folder, found)


def survey(folder: Path) -> Survey:
    """Read all shards of `folder`. Raises `UserError` if one cannot be read, or there are none of a split."""
    found: dict[str, list[Path]] = {"train": [], "test": []}
    for split, path in sorted(_shards(folder)):
        found[split].append(path)
    for split, names in (("train", "train*"), ("test", "test* or val*")):
        if not found[split]:
            raise UserError(f"{folder} has no shards of {split} images: expected {names}, .tar or .tfrecord")
    _tell_others(folder, {path for paths in found.values() for path in paths})
    indexed = _indexed(folder, [*found["train"], *found["test"]])
    count = len(found["train"])
    shards = {"train": indexed[:count], "test": indexed[count:]}
    return Survey(found, shards, [line for paths in found.values() for line in _missing(folder, paths)])


def _tell_others(folder: Path, used: set[Path]) -> None:
    others = sorted(item.name for item in _items(folder) if _is_shard(item) and Path(item.path) not in used)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        console.notice(f"{folder}: left out, being of no split by name and folder: {', '.join(others[:3])}{more}.")


def _missing(folder: Path, paths: list[Path]) -> Iterator[str]:
    """A line for each number that is left out among shards named `…-00003-of-00128`."""
    present: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for path in paths:
        if match := OF_SEVERAL.fullmatch(path.relative_to(folder).as_posix()):
            name, number, count, end = match.groups()
            present[name, count, end].add(int(number))
    for (name, count, end), numbers in present.items():
        for number in sorted(set(range(int(count))) - numbers):
            yield f"{name}-{number:05}-of-{count}{end} is missing: copy or download it again"


def assemble(folder: Path, found: Survey) -> tuple[EncodedSet, EncodedSet, tuple[str, ...]]:
    """As `index`, of what a survey found, whatever it found wrong."""
    train, test = (_joined(found.paths[split], found.shards[split]) for split in ("train", "test"))
    for split, images in (("train", train), ("test", test)):
        if not len(images):
            raise UserError(f"{folder}: the {split} shards hold no images ({', '.join(IMAGES)} with a .{LABEL} each)")
    return _with_classes(folder, train, test)


def _shards(folder: Path) -> Iterator[tuple[str, Path]]:
    """Split and path of each shard, in no order: those in folders of the splits, or if there are none, in this one."""
    items = _items(folder)
    parts = [item for item in items if item.name in SPLITS and item.is_dir()]
    for part in parts:
        yield from ((SPLITS[part.name], Path(item.path)) for item in _items(Path(part.path)) if _is_shard(item))
    for item in items:
        split = SPLIT.match(item.name)
        if split and not parts and _is_shard(item):
            yield SPLITS[split[1]], Path(item.path)


def _items(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as e:
        raise UserError(f"Cannot read {folder}: {e.strerror}.") from e


def _is_shard(item: "os.DirEntry[str]") -> bool:
    return bool(IS_TAR.search(item.name) or IS_TFRECORD.search(item.name)) and not item.is_dir()


def _indexed(folder: Path, paths: list[Path]) -> list[Shard]:
    """What is in each shard, by a process a core if there is much to read."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"Cannot read {path}: it is no file, or a link to none; restore it, or remove it.")
    processes = None if sum(path.stat().st_size for path in paths) > MUCH else 1
    shards = []
    with console.progress(f"Indexing {folder.name}", len(paths)) as advance:
        for shard in in_order(partial(_index_one, folder), paths, len(paths), processes, batch=1):
            shards.append(shard)
            advance(1)
    return shards


def _index_one(folder: Path, path: Path) -> Shard:
    samples: list[Sample] = []
    problems: list[str] = []
    read = _tar_samples if IS_TAR.search(path.name) else _tfrecord_samples
    try:
        samples.extend(read(path, path.relative_to(folder).as_posix(), problems))
    except UserError as e:
        problems.append(str(e))
    return Shard(samples, problems)


def _tar_samples(path: Path, shard: str, problems: list[str]) -> Iterator[Sample]:
    images: dict[str, list[Entry]] = defaultdict(list)
    labels: dict[str, bytes] = {}
    for entry in entries(path):
        folder, _, file = entry.name.rpartition("/")
        stem, _, kind = file.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if entry.kind == "file" and kind.lower() in IMAGES:
            images[key].append(entry)
        elif entry.kind == "file" and kind.lower() == LABEL:
            if key in labels:
                problems.append(f"{shard}: {key} has two classes")
            labels[key] = entry.read()
    for key in sorted(labels.keys() - images.keys()):
        problems.append(f"{shard}: {key} has a class and no image ({', '.join(IMAGES)})")
    for key, found in images.items():
        label = _label(labels.get(key))
        if len(found) > 1:
            problems.append(f"{shard}: {key} has {len(found)} images")
        elif isinstance(label, str):
            problems.append(f"{shard}: {key} {label}")
        else:
            yield Sample(f"{shard}/{found[0].name}", found[0].offset, found[0].length, label)


def _label(content: bytes | None) -> int | str:
    """The class, or what is wrong with it."""
    if content is None:
        return f"has an image and no class (.{LABEL})"
    text = content[:40].decode("utf-8", "replace").strip()
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else f"has the class {text!r}, which is not a number from 0"


def _tfrecord_samples(path: Path, shard: str, problems: list[str]) -> Iterator[Sample]:
    for number, record in enumerate(tfrecord.records(path)):
        name = f"{shard}, record {number}"
        if record.image is None:
            problems.append(f"{name} has no image ({b' or '.join(tfrecord.ENCODED).decode()})")
        elif record.label is None or record.label < 0:
            problems.append(f"{name} has no class ({b' or '.join(tfrecord.LABEL).decode()} from 0)")
        else:
            yield Sample(name, record.image.start, record.image.stop - record.image.start, record.label)


def _joined(paths: list[Path], shards: list[Shard]) -> EncodedSet:
    samples = [sample for shard in shards for sample in shard.samples]
    return EncodedSet(
        tuple(map(str, paths)),
        np.repeat(np.arange(len(paths), dtype=np.int32), [len(shard.samples) for shard in shards]),
        np.array([sample.offset for sample in samples], np.int64),
        np.array([sample.length for sample in samples], np.int64),
        np.zeros(len(samples), bool),
        np.zeros((len(samples), 2), np.int32),
        np.array([sample.label for sample in samples], np.int64),
        tuple(sample.name for sample in samples),
    )


def _with_classes(folder: Path, train: EncodedSet, test: EncodedSet) -> tuple[EncodedSet, EncodedSet, tuple[str, ...]]:
    """Labels become 0 … number of classes − 1: those that training images have, or that `classes.txt` has names for."""
    seen = np.unique(train.labels)
    unseen = np.flatnonzero(~np.isin(test.labels, seen))
    if len(unseen):
        first = f"{test.names[unseen[0]]} has class {test.labels[unseen[0]]}"
        raise UserError(f"{folder}: {first}, which no training image has ({len(unseen)} such test images)")
    names = _class_names(folder / CLASSES_FILE)
    values = _named(folder, seen, len(names)) if names else seen
    if (values != np.arange(len(values))).any():
        console.notice(f"{folder}: classes {values[0]} … {values[-1]} are called 0 … {len(values) - 1} here, in order.")
    train, test = (replace(images, labels=np.searchsorted(values, images.labels)) for images in (train, test))
    return train, test, names or tuple(map(str, values))


def _class_names(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text("utf-8", "replace").splitlines() if file.exists() else []
    except OSError as e:
        raise UserError(f"Cannot read {file}: {e.strerror}.") from e
    return tuple(line.strip() for line in lines if line.strip())


def _named(folder: Path, seen: np.ndarray, count: int) -> np.ndarray:
    """The labels that `count` names belong to: from 0, or from 1 if it takes that to have a name for each."""
    first = int(seen[0] > 0 and seen[-1] == count)
    if seen[-1] >= first + count:
        raise UserError(f"{folder / CLASSES_FILE} has {count} names, and labels go from {seen[0]} to {seen[-1]}")
    return np.arange(first, first + count)
