"""Images that a data set holds more than once: of a test image that is trained on, no accuracy says anything."""

import hashlib
from array import array
from collections.abc import Iterator

import numpy as np

from fastarat.common import console
from fastarat.data.images.dataset import SPLITS, Dataset, Images
from fastarat.data.images.pool import in_order
from fastarat.data.images.stored import Span, StoredImages

MUCH, MANY = 2**26, 100_000
"""bytes of pixels, and images, whose digests take some tenths of a second"""


def digest_of(content: bytes | memoryview) -> bytes:
    """What tells a content from others: 8 bytes, which two of a million images share once in ten million sets."""
    return hashlib.blake2b(content, digest_size=8).digest()


NOTHING = digest_of(b"")


class Contents:
    """What the images of a data set hold, of which 8 bytes an image are kept, beside its name and label.

    Images are the same if their stored bytes are, or their pixels where they are stored as such: one that was encoded
    again is another.
    """

    def __init__(self) -> None:
        self._digests = {split: array("Q") for split in SPLITS}
        self._labels = {split: array("q") for split in SPLITS}
        self._names: dict[str, list[str]] = {split: [] for split in SPLITS}

    def add(self, split: str, name: str, label: int, digest: bytes) -> None:
        """Take note of an image by its `digest_of`; one without a byte is damaged, and no copy of another such."""
        if digest != NOTHING:
            self._digests[split].frombytes(digest)
            self._labels[split].append(label)
            self._names[split].append(name)

    def add_all(self, dataset: Dataset) -> None:
        """Take note of all images of `dataset`. Raises `WorkError` if a stored one is gone, or has changed."""
        with console.progress(f"Comparing {dataset.name}", sum(map(len, dataset.splits.values()))) as advance:
            for split, part in dataset.splits.items():
                found = zip(_names(split, part), part.labels.tolist(), _digests(part), strict=True)
                for name, label, digest in found:
                    self.add(split, name, label, digest)
                    advance(1)

    def problems(self) -> list[str]:
        """A line for the test images that are training images too, and for each split's that are in two classes."""
        return [*self._trained_on(), *(line for split in SPLITS for line in self._of_two_classes(split))]

    def _trained_on(self) -> Iterator[str]:
        train, test = (np.array(self._digests[split]) for split in SPLITS)
        copies = np.flatnonzero(np.isin(test, train))
        if len(copies):
            name = self._names["test"][copies[0]]
            of = self._names["train"][int((train == test[copies[0]]).argmax())]
            yield (
                f"{len(copies)} of {len(test)} test images are training images too (the first is {name}, the same as "
                f"{of}), and accuracy on these says nothing: take them out of one split"
            )

    def _of_two_classes(self, split: str) -> Iterator[str]:
        labels, names = np.array(self._labels[split]), self._names[split]
        _, first, group = np.unique(np.array(self._digests[split]), return_index=True, return_inverse=True)
        of = first[group]
        others = np.flatnonzero(labels != labels[of])
        if len(others):
            example = f"{names[others[0]]}, the same as {names[of[others[0]]]}"
            yield (
                f"{len(others)} of {len(labels)} {split} images are in another class too (the first is {example}): "
                "keep one of each"
            )


def problems_of(dataset: Dataset) -> list[str]:
    """What `Contents` finds in a data set."""
    contents = Contents()
    contents.add_all(dataset)
    return contents.problems()


def warnings_of(dataset: Dataset) -> list[str]:
    """The same at the start of work, of a small data set.

    Left out are those of more than `MUCH` bytes or `MANY` images, and splits of which one is not decoded, each of whose
    files would have to be read: these `fastarat data check` alone compares.
    """
    decoded = [part for part in dataset.splits.values() if isinstance(part, Images)]
    is_small = sum(part.images.nbytes for part in decoded) <= MUCH and sum(map(len, decoded)) <= MANY
    is_small = is_small and len(decoded) == len(SPLITS)
    return [f"{dataset.name}: {line}" for line in problems_of(dataset)] if is_small else []


def _names(split: str, part: Images | StoredImages) -> Iterator[str]:
    return iter(part.names) if isinstance(part, StoredImages) else (f"{split} image {i}" for i in range(len(part)))


def _digests(part: Images | StoredImages) -> Iterator[bytes]:
    if isinstance(part, StoredImages):
        return in_order(_digest_of_stored, map(part.span, range(len(part))), len(part))
    return (digest_of(np.ascontiguousarray(pixels).data) for pixels in part.images)


def _digest_of_stored(span: Span) -> bytes:
    return digest_of(span.read())
