"""JSON that others may have written, read with care; and our own, sealed with a checksum."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from fastarat.common.errors import UserError
from fastarat.common.files import require_file, synchronise

MOST_JSON_BYTES = 1 << 24
"""of files that describe something in some thousand bytes; a parsed value takes up to thirty times its text"""
DEEPEST_JSON = 32
MOST_BITS = 64


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """What the JSON file `path` holds, as `parse_json` reads it. Raises `UserError`, which names no fix."""
    require_file(path)
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise ValueError(f"{size} bytes are more than {most_bytes}")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def has_fields(path: Path, *names: str) -> bool:
    """Whether a file holds a JSON object with these fields."""
    try:
        found = read_json(path)
    except UserError:
        return False
    return isinstance(found, dict) and set(names) <= found.keys()


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object with its `checksum_of`, so that a power cut keeps it. Raises `OSError`."""
    sealed = {**values, "checksum": checksum_of(values)}
    path.write_text(json.dumps(sealed, indent=2) + "\n", encoding="utf-8")
    synchronise(path)


def read_sealed(path: Path, version: int, *, fix: str, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """A JSON object that `write_sealed` wrote, with its version and without its checksum.

    Raises `UserError` with `fix` if it cannot be read, has another version, or has changed since.
    """
    try:
        values = read_json(path, most_bytes)
    except UserError as error:
        raise UserError(f"{error}: {fix}") from error
    found = values.get("version") if isinstance(values, dict) else None
    if type(found) is not int:
        raise UserError(f"{path} cannot be read (it has no version): {fix}")
    if found != version:
        age, way_out = ("a newer", f"upgrade fastarat, or {fix}") if found > version else ("an older", fix)
        formats = f"it has format {found}, and this fastarat reads {version}"
        raise UserError(f"{path} was made by {age} fastarat ({formats}): {way_out}")
    if values.pop("checksum", None) != checksum_of(values):
        raise UserError(f"{path} cannot be read (it has changed since it was written): {fix}")
    return values


def parse_json(text: bytes | str) -> Any:
    """JSON of others: UTF-8, nested at most `DEEPEST_JSON` deep, numbers finite and of at most `MOST_BITS` bits.

    Raises `ValueError` of one line for anything else.
    """
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is no UTF-8") from error
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")
    return value


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _whole(digits: str) -> int:
    if len(digits) > MOST_BITS or abs(int(digits)).bit_length() > MOST_BITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def checksum_of(values: dict[str, Any]) -> str:
    """SHA-256 (64 hex digits) of everything in a JSON object but its own entry "checksum"."""
    rest = {name: value for name, value in values.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
