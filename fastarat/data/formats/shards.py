"""Data sets in shards: WebDataset's tars and TFRecords, many images in each of a few large files.

Files in one folder whose names have the split in them (`train-000.tar`, `imagenet1k-validation-00.tar`,
`cifar10-test.tfrecord-00000-of-00001`), or files in folders that are called train, test or val (validation). A
`classes.txt` beside the shards has the names of the classes, a line each.
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

from fastarat.common import console
from fastarat.common.console import require_none
from fastarat.common.errors import UserError
from fastarat.common.files import require_file
from fastarat.data.formats import class_folders, tfrecord
from fastarat.data.formats.archives import is_clutter, stem
from fastarat.data.formats.webdataset import IMAGES, LABEL, samples
from fastarat.data.images import copies
from fastarat.data.images.damaged import readable
from fastarat.data.images.dataset import SPLITS, Dataset, class_problems, from_splits
from fastarat.data.images.pool import in_order
from fastarat.data.images.stored import Sample, StoredImages
from fastarat.data.images.whole_sets import scan_all

SPLIT_OF = {**class_folders.SPLIT_OF, "validation": "test"}
SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_OF)})(?![a-z])")
IS_TAR = re.compile(r"\.tar$")
IS_TFRECORD = re.compile(r"\.tfrecords?$|-\d{5}-of-\d{5}$")
OF_SEVERAL = re.compile(r"(.*)-(\d{5})-of-(\d{5})(.*)")
CLASSES_FILE = "classes.txt"
MOST_CLASS_BYTES = 1 << 24
MUCH = 2**26
"""bytes that one process would read for some seconds: the checksums of TFRecords are over all that they hold"""


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
    """Whether `folder` is one, and holds shards; only names are looked at."""
    return folder.is_dir() and next(_shards(folder), None) is not None


def files(folder: Path) -> list[Path]:
    """The files that an index of `folder` is made of."""
    names = folder / CLASSES_FILE
    return [*sorted(path for _, path in _shards(folder)), *([names] if os.path.lexists(names) else [])]


def index(folder: Path) -> Dataset:
    """The images in the order of the shards, sizes still 0.

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
    for split, names in (("train", "train"), ("test", "test, val or validation")):
        if not found[split]:
            raise UserError(
                f"{folder} has no shards of {split} images: expected names with {names} in them, .tar or .tfrecord"
            )
    _tell_others(folder, {path for paths in found.values() for path in paths})
    indexed = _indexed(folder, [*found["train"], *found["test"]])
    count = len(found["train"])
    shards = {"train": indexed[:count], "test": indexed[count:]}
    return Survey(found, shards, [line for paths in found.values() for line in _missing(folder, paths)])


def _tell_others(folder: Path, used: set[Path]) -> None:
    others = sorted(item.name for item in _items(folder) if _is_shard(item) and Path(item.path) not in used)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        console.notice(f"{folder}: left out, being of no split by name and folder: {', '.join(others[:3])}{more}")


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


def assemble(folder: Path, found: Survey) -> Dataset:
    """As `index`, of what a survey found, whatever is wrong with it. Raises `UserError` as `index` does."""
    train, test = (_joined(found.paths[split], found.shards[split]) for split in SPLITS)
    for split, images in zip(SPLITS, (train, test), strict=True):
        if not len(images):
            raise UserError(f"{folder}: the {split} shards hold no images ({', '.join(IMAGES)} with a .{LABEL} each)")
    return _with_classes(folder, train, test)


def problems(folder: Path) -> list[str]:
    """Everything wrong with the shards, a line each; every image is decoded."""
    found: list[str] = []
    try:
        surveyed = survey(folder)
        found += surveyed.problems
        dataset = assemble(folder, surveyed)
        found += class_problems(len(dataset.classes))
        for images in dataset.stored_splits.values():
            found += scan_all(images, folder.name).problems.values()
        found += copies.problems_of(dataset)
    except UserError as error:  # after which nothing more can be found out
        found.append(str(error))
    return found


def _shards(folder: Path) -> Iterator[tuple[str, Path]]:
    """Split and path of each shard, in no order: those in folders of the splits, or if there are none, in this one."""
    items = _items(folder)
    parts = [item for item in items if item.name in SPLIT_OF and item.is_dir()]
    for part in parts:
        yield from ((SPLIT_OF[part.name], Path(item.path)) for item in _items(Path(part.path)) if _is_shard(item))
    for item in items:
        splits = {SPLIT_OF[word] for word in SPLIT.findall(item.name)}
        if len(splits) == 1 and not parts and _is_shard(item):
            yield splits.pop(), Path(item.path)


def _items(folder: Path) -> "list[os.DirEntry[str]]":
    with readable(folder), os.scandir(folder) as found:
        return list(found)


def _is_shard(item: "os.DirEntry[str]") -> bool:
    is_named_so = bool(IS_TAR.search(item.name) or IS_TFRECORD.search(item.name)) and not is_clutter(item.name)
    return is_named_so and not item.is_dir()


def _indexed(folder: Path, paths: list[Path]) -> list[Shard]:
    """What is in each shard, by a process a core if there is much to read."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"cannot read {path}: it is no file, or a link to none; restore it, or remove it")
    processes = None if sum(path.stat().st_size for path in paths) > MUCH else 1
    shards = []
    with console.progress(f"Indexing {folder.name}", len(paths)) as advance:
        for shard in in_order(partial(_index_one, folder), paths, len(paths), processes=processes, batch=1):
            shards.append(shard)
            advance(1)
    return shards


def _index_one(folder: Path, path: Path) -> Shard:
    found: list[Sample] = []
    problems: list[str] = []
    read = samples if IS_TAR.search(path.name) else _tfrecord_samples
    try:
        found.extend(read(path, path.relative_to(folder).as_posix(), problems))
    except UserError as error:
        problems.append(str(error))
    return Shard(found, problems)


def _tfrecord_samples(path: Path, shard: str, problems: list[str]) -> Iterator[Sample]:
    for number, record in enumerate(tfrecord.records(path)):
        name = f"{shard}, record {number}"
        if record.image is None:
            problems.append(f"{name} has no image ({b' or '.join(tfrecord.ENCODED).decode()})")
        elif record.label is None or record.label < 0:
            problems.append(f"{name} has no class ({b' or '.join(tfrecord.LABEL).decode()} from 0)")
        else:
            yield Sample(name, record.image.start, record.image.stop - record.image.start, record.label)


def _joined(paths: list[Path], shards: list[Shard]) -> StoredImages:
    files = np.repeat(np.arange(len(paths)), [len(shard.samples) for shard in shards])
    return StoredImages.of_samples(paths, files, [sample for shard in shards for sample in shard.samples])


def _with_classes(folder: Path, train: StoredImages, test: StoredImages) -> Dataset:
    """Labels become 0 … number of classes − 1: those that training images have, or that `classes.txt` has names for."""
    seen = np.unique(train.labels)
    unseen = np.flatnonzero(~np.isin(test.labels, seen))
    if len(unseen):
        first = f"{test.names[unseen[0]]} has class {test.labels[unseen[0]]}"
        raise UserError(f"{folder}: {first}, which no training image has ({len(unseen)} such test images)")
    names = _class_names(folder / CLASSES_FILE)
    values = _named(folder, seen, len(names)) if names else seen
    if (values != np.arange(len(values))).any():
        console.notice(f"{folder}: classes {values[0]} … {values[-1]} are called 0 … {len(values) - 1} here, in order")
    train, test = (replace(images, labels=np.searchsorted(values, images.labels)) for images in (train, test))
    return from_splits(stem(folder), train, test, names or tuple(map(str, values)))


def _class_names(file: Path) -> tuple[str, ...]:
    if not os.path.lexists(file):
        return ()
    require_file(file)
    with readable(file):
        if file.stat().st_size > MOST_CLASS_BYTES:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes, too many for the names of classes")
        lines = file.read_text("utf-8", "replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _named(folder: Path, seen: np.ndarray, count: int) -> np.ndarray:
    """The labels that `count` names belong to: from 0, or from 1 if it takes that to have a name for each."""
    first = int(seen[0] > 0 and seen[-1] == count)
    if seen[-1] >= first + count:
        raise UserError(f"{folder / CLASSES_FILE} has {count} names, and labels go from {seen[0]} to {seen[-1]}")
    return np.arange(first, first + count)
