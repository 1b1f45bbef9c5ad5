"""Classes are compared by their names: sets that have the same ones in another order are brought to one order."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastarat.common.errors import UserError
from fastarat.data.images.dataset import Dataset, Images, fingerprint
from fastarat.data.images.stored import STORED


class Match(NamedTuple):
    """How the classes of one become those of another."""

    places: np.ndarray
    """int64 [K]: the number that each class has there"""
    names: tuple[str, ...]
    """what the classes are called, in the order of their numbers there"""
    how: str
    """what a person has to know of it, a phrase; empty where names and order are the same"""


def match_classes(names: Sequence[str], wanted: Sequence[str], whose: str, of: str, fix: str) -> Match:
    """How classes `names`, of `whose`, become `wanted`, those of `of`.

    The names must be the same, in any order; where one side only numbers its classes from 0, and none of the other
    has such a name, the numbers count. Raises `UserError` with the first that differ, and `fix`, for all else.
    """
    names, wanted = tuple(map(str, names)), tuple(map(str, wanted))
    same = np.arange(len(names), dtype=np.int64)
    if names == wanted:
        return Match(same, wanted, "")
    if sorted(names) == sorted(wanted) and len(set(names)) == len(names):
        number = {name: i for i, name in enumerate(wanted)}
        places = np.array([number[name] for name in names], np.int64)
        first = int((places != same).argmax())
        example = f"{names[first]!r} is class {first} there and {places[first]} here"
        return Match(places, wanted, f"by name, since {whose} has them in another order than {of} ({example})")
    if len(names) == len(wanted) and not set(names) & set(wanted):
        for numbers, nameless, others in ((names, whose, wanted), (wanted, of, names)):
            if are_numbers(numbers):
                return Match(same, others, f"by number, since {nameless} has no names for them")
    raise UserError(f"{whose} has other classes than {of}: {_difference(names, wanted, whose, of)}; {fix}")


def in_order_of(dataset: Dataset, wanted: Sequence[str], of: str, fix: str) -> Dataset:
    """`dataset` with its classes and labels in the order of `wanted`, those of `of`, and with `matched`.

    Raises as `match_classes` does.
    """
    places, names, how = match_classes(dataset.classes, wanted, dataset.name, of, fix)
    dataset = replace(dataset, classes=names, matched=how)
    if (places == np.arange(len(places))).all():
        return dataset
    train, test = (replace(split, labels=places[split.labels]) for split in dataset.splits.values())
    if isinstance(train, Images):  # as a set that lies in this order has it; of stored images one of its own
        of_both = fingerprint(train, test)
    else:
        of_both = STORED + hashlib.sha256(dataset.fingerprint.encode() + places.tobytes()).hexdigest()
    return replace(dataset, train=train, test=test, fingerprint=of_both)


def are_numbers(names: Sequence[str]) -> bool:
    """Whether classes are only numbered from 0, as those of an .npz file, or of shards without a `classes.txt`."""
    return tuple(names) == tuple(map(str, range(len(names))))


def _difference(names: tuple[str, ...], wanted: tuple[str, ...], whose: str, of: str) -> str:
    """The first classes that differ, and how."""
    if len(names) != len(wanted):
        return f"{len(names)} and not {len(wanted)} ({_some(names)}; {_some(wanted)})"
    if sorted(names) == sorted(wanted):
        twice = next(name for name in names if names.count(name) > 1)
        return f"in another order, and {twice!r} is the name of two"
    here, there = ([name for name in one if name not in other] for one, other in ((names, wanted), (wanted, names)))
    text = " and ".join(f"{found[0]!r} is in {one} alone" for found, one in ((here, whose), (there, of)) if found)
    if len(here) > 1:
        text += f" ({len(here)} differ)"
    if {_spelling(name) for name in here} == {_spelling(name) for name in there}:
        text += ", which are the same but for case and spaces"
    return text


def _spelling(name: str) -> str:
    return "".join(name.split()).casefold()


def _some(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
