"""Which files of a folder or archive are images of which class: `train/<class>/…`, `test|val/<class>/…`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fastarat.common import console
from fastarat.data.formats.archives import LARGEST, Entry, entries
from fastarat.data.images.dataset import class_problems
from fastarat.data.images.decoding import File, open_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SPLIT_OF = {"train": "train", "test": "test", "val": "test"}
EXPECTED = "train/<class>/*.jpg|jpeg|png and test/<class>/… (or val/)"


@dataclass(frozen=True)
class Place:
    """Where an image belongs."""

    split: str
    row: int
    label: int


@dataclass(frozen=True)
class Layout:
    """What a source holds, before any pixel is decoded."""

    classes: tuple[str, ...]
    places: dict[str, Place]
    """By entry name; rows follow the sorted names, so that a folder and its archive give the same set."""
    size: tuple[int, int] | None
    """(width, height) of the first image that can be read."""
    problems: list[str]
    links: dict[str, list[str]] = field(default_factory=dict)
    """By name of an entry: the hard links to it, which are images of their own."""

    def names(self, entry: Entry) -> list[str]:
        """The images whose content the entry holds: none, itself, or it and its hard links."""
        if entry.kind != "file":
            return []
        return [name for name in (entry.name, *self.links.get(entry.name, ())) if name in self.places]

    def count(self, split: str) -> int:
        """Number of images in 'train' or 'test'."""
        return sum(place.split == split for place in self.places.values())


def survey(source: Path) -> Layout:
    """Read the names in `source`, and the size of its first image."""
    found: list[tuple[str, str]] = []
    links, clutter, size = _Links(), 0, None
    problems: list[str] = []
    for entry in entries(source):
        if entry.kind == "clutter":
            clutter += 1
            continue
        found.append((entry.name, links.kind(entry)))
        if entry.length > LARGEST:
            problems.append(f"{entry.name} has {entry.length:,} bytes, more than any image")
        elif size is None and entry.kind == "file":
            size = _size(entry)
    _tell_clutter(source, clutter)
    top = _top_folder(name for name, _ in found)
    folders, images, strays = _sort_out(found, top)
    problems += strays
    missing = _split_problem({folder for folder, _ in folders})
    if missing and any(name.endswith(".cls") for name, _ in found):
        missing = "it holds samples of a WebDataset: give the folder that its shards are in"
    # In a folder that is no image folder at all, every other file would be a stray.
    problems = [missing] if missing else _class_problems(folders, images) + problems
    classes = tuple(sorted({name for _, name in folders}))
    return Layout(classes, _places(images, classes), size, problems, links.by_target)


class _Links:
    """Hard links in an archive, each to a file in front of it."""

    def __init__(self):
        self.by_target: dict[str, list[str]] = {}
        self._first: dict[str, str] = {}

    def kind(self, entry: Entry) -> str:
        """What the entry is taken for: a hard link for the file that it is, if that is there."""
        if entry.kind == "file":
            self._first[entry.name] = entry.name
        if entry.kind != "hard link" or entry.target not in self._first:
            return entry.kind
        first = self._first[entry.name] = self._first[entry.target]
        self.by_target.setdefault(first, []).append(entry.name)
        return "file"


@cache  # a command may look at a source several times
def _tell_clutter(source: Path, count: int) -> None:
    if count:
        files = "1 file" if count == 1 else f"{count:,} files"
        console.notice(f"{source}: passed over {files} of macOS, Windows or tools (such as .DS_Store, ._*, Thumbs.db)")


def _size(entry: Entry) -> tuple[int, int] | None:
    try:
        with open_image(File(entry.name, entry.read())) as image:
            return image.size
    except Exception:  # Pillow raises almost any type; decoding names what cannot be read
        return None


def _top_folder(names: Iterable[str]) -> str:
    """The one folder, such as 'photos-320/', that holds all else; '' where there is none."""
    tops = {name.split("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & SPLIT_OF.keys() else ""


def _sort_out(
    found: list[tuple[str, str]], top: str
) -> tuple[set[tuple[str, str]], dict[str, tuple[str, str]], list[str]]:
    """Class folders (folder, class), images by entry name with their (folder, class), and stray files."""
    folders: set[tuple[str, str]] = set()
    images: dict[str, tuple[str, str]] = {}
    problems: list[str] = []
    for name, kind in found:
        parts = name.removeprefix(top).split("/")
        inside = parts[0] in SPLIT_OF and ".." not in parts
        if kind == "folder" and (name + "/" == top or (inside and len(parts) <= 2)):
            folders |= {(parts[0], parts[1])} if len(parts) == 2 else set()
        elif name in images:
            problems.append(f"{name} is there twice")
        elif kind == "file" and inside and len(parts) == 3 and name.lower().endswith(IMAGE_SUFFIXES):
            images[name] = (parts[0], parts[1])
            folders.add((parts[0], parts[1]))
        else:
            problems.append(f"stray {kind} {name} is no image in a class folder: remove it")
    return folders, images, problems


def _split_problem(splits: set[str]) -> str | None:
    if "train" not in splits:
        return f"no train folder with classes in it (expected {EXPECTED})"
    if splits == {"train"}:
        return f"no test or val folder with classes in it (expected {EXPECTED})"
    if len(splits) == 3:
        return "both a test and a val folder: keep one, which is what accuracy is measured on"
    return None


def _class_problems(folders: set[tuple[str, str]], images: dict[str, tuple[str, str]]) -> list[str]:
    (other,) = {folder for folder, _ in folders} - {"train"}
    filled = Counter(images.values())
    problems = [f"empty class folder {'/'.join(folder)}" for folder in sorted(folders) if not filled[folder]]
    for here, there in (("train", other), (other, "train")):
        only = {name for folder, name in folders if folder == here}
        only -= {name for folder, name in folders if folder == there}
        problems += [f"class {name!r} is in {here} but not in {there}" for name in sorted(only)]
    return problems + class_problems(len({name for _, name in folders}))


def _places(images: dict[str, tuple[str, str]], classes: tuple[str, ...]) -> dict[str, Place]:
    labels = {name: label for label, name in enumerate(classes)}
    rows: Counter[str] = Counter()
    places = {}
    for name in sorted(images):
        folder, class_name = images[name]
        split = SPLIT_OF[folder]
        places[name] = Place(split, rows[split], labels[class_name])
        rows[split] += 1
    return places
