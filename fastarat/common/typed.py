"""Values that were read from a file, made the dataclass that they say they are; numbers that are out of bounds."""

import math
import reprlib
from dataclasses import is_dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastarat.common.errors import UserError

LARGEST = 1 << 64
"""whole numbers of files are smaller: one fits no tensor, nor a float"""

MOST = 1 << 32
"""counts (of images, steps, processes) are smaller: their products fit into int64"""
TOO_MANY = "give a number below 2^32"


def build(cls: Any, values: dict[str, Any], source: str, prefix: str = "") -> Any:
    """The dataclass `cls` with these values. Raises `UserError`, which begins with `source`, for what does not fit."""
    hints = get_type_hints(cls)
    wrong = sorted(set(values) - set(hints))
    if wrong:
        raise UserError(f"{source} has the unknown setting {prefix}{wrong[0]}: written by another version of fastarat?")
    built = {}
    for name, value in values.items():
        hint = hints[name]
        if members := _members(hint):
            hint = _member(members, value, f"{source}: {prefix}{name}")
        if is_dataclass(hint) and isinstance(value, dict):
            built[name] = build(hint, value, source, f"{prefix}{name}.")
        elif fits(value, hint):
            built[name] = tuple(value) if isinstance(value, list) else value
        else:
            raise UserError(f"{source}: {prefix}{name} is {reprlib.repr(value)}, which does not fit")
    try:
        return cls(**built)
    except TypeError as error:  # a value without default is not there
        raise UserError(f"{source} is not complete: {str(error).partition(' ')[2]}") from error


def _members(hint: Any) -> dict[str, type]:
    """By their `name` the dataclasses of which a field holds one: those that inherit from its type."""
    kinds: list[Any] = type.__subclasses__(hint) if isinstance(hint, type) and is_dataclass(hint) else []
    return {kind.name: kind for kind in kinds}


def _member(members: dict[str, type], value: Any, where: str) -> type:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {reprlib.repr(value)}, which does not fit")
    name = value.get("name")
    if not isinstance(name, str) or name not in members:
        raise UserError(f"{where}.name is {reprlib.repr(name)}, which does not fit; it is one of {', '.join(members)}")
    return members[name]


def plain(value: Any) -> Any:
    """A number of NumPy's, or of another library that registers its own, as Python's; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field: numbers are finite and below 2^64, a list stands for a tuple."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        wanted = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(wanted) and all(map(fits, value, wanted))
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, arguments[1]) for each in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_small(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and _is_small(value)
    return isinstance(value, hint if isinstance(hint, type) else type(None))


def _is_small(value: float) -> bool:
    return abs(value) < LARGEST if isinstance(value, int) else math.isfinite(value)


def wrong_count(value: int, least: int) -> str:
    """What to give instead of a count that is too small or too large; '' for one that is neither."""
    if value < least:
        return f"give {least} or more"
    return "" if value < MOST else TOO_MANY


def not_negative(owner: str, settings: object, *names: str) -> list[str]:
    """A line, which names `owner` too, for each of these fields that is no finite number of 0 or more, nor None."""
    values = {name: getattr(settings, name) for name in names}
    return [
        f"{owner} {name} is {value}: give a finite number of 0 or more"
        for name, value in values.items()
        if value is not None and not (_is_small(value) and value >= 0)
    ]
