"""Damaged copies of a file, always the same ones, and what may come of opening them."""

import random
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastarat.common.errors import UserError, WorkError

PAGE = 4096
FEW, MANY = 150, 1000
"""how many mutants of a kind of file the suite opens, and `make slow-tests`"""


def mutants(good: bytes, count: int, seed: str) -> Iterator[tuple[str, bytes]]:
    """`count` damaged copies of a file, each with a name that says what was done where. Equal seeds, equal mutants."""
    for i in range(count):
        draw = random.Random(f"{seed} {i}")
        change = draw.choice(CHANGES)
        at = draw.randrange(min(len(good), 2 * PAGE) if draw.random() < 0.5 else len(good))  # headers come first
        yield f"{seed}, mutant {i}: {change.__name__.strip('_')} at byte {at}", change(bytearray(good), at, draw)


def outcomes(
    path: Path, good: bytes, count: int, opened: Callable[[], Any], *, may_differ: bool = False, seed: str = ""
) -> Counter[str]:
    """Put `count` mutants of `good` at `path` and call `opened` on each: how often it was refused (a `UserError` or
    `WorkError` of one line), equal to what the good file gives, or different.

    Fails with the mutant's name on any other exception, on more than 2 GiB of memory and, unless `may_differ` (the
    format has no checksum there), on a silently different result. The good file is put back.
    """
    path.write_bytes(good)
    whole, found = opened(), Counter[str]()
    try:
        for name, content in mutants(good, count, seed or path.name):
            path.write_bytes(content)
            try:
                with memory_of(2 << 30):
                    outcome = "equal" if opened() == whole else "different"
            except (UserError, WorkError) as e:
                assert 0 < len(str(e)) < 1000 and "\n" not in str(e), f"{name}: {e}"
                outcome = "refused"
            except Exception as e:
                raise AssertionError(f"{name}: {type(e).__name__}: {e}") from e
            assert may_differ or outcome != "different", f"{name}: silently different"
            found[outcome] += 1
    finally:
        path.write_bytes(good)
    return found


@contextmanager
def memory_of(size: int) -> Iterator[None]:
    """Let this process take `size` bytes more than it has now: `MemoryError` comes instead of a machine that swaps."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _flip_a_bit(content: bytearray, at: int, draw: random.Random) -> bytes:
    content[at] ^= 1 << draw.randrange(8)
    return bytes(content)


def _other_byte(content: bytearray, at: int, draw: random.Random) -> bytes:
    content[at] = draw.choice((0, 10, 34, 45, 48, 57, 91, 127, 128, 255))
    return bytes(content)


def _cut(content: bytearray, at: int, draw: random.Random) -> bytes:
    return bytes(content[:at])


def _zero_a_page(content: bytearray, at: int, draw: random.Random) -> bytes:
    page = slice(at // PAGE * PAGE, (at // PAGE + 1) * PAGE)
    content[page] = bytes(len(content[page]))
    return bytes(content)


def _zeros_to_the_end(content: bytearray, at: int, draw: random.Random) -> bytes:
    content[at:] = bytes(len(content) - at)
    return bytes(content)


def _leave_out(content: bytearray, at: int, draw: random.Random) -> bytes:
    del content[at : at + draw.choice((1, 2, 8, 512))]
    return bytes(content)


def _put_in(content: bytearray, at: int, draw: random.Random) -> bytes:
    content[at:at] = draw.randbytes(draw.choice((1, 2, 8, 512)))
    return bytes(content)


def _say_it_twice(content: bytearray, at: int, draw: random.Random) -> bytes:
    part = content[at : at + draw.choice((1, 16, 512))]
    content[at:at] = part
    return bytes(content)


def _large_number(content: bytearray, at: int, draw: random.Random) -> bytes:
    size = draw.choice((2, 4, 8))
    content[at : at + size] = draw.choice((b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), b"9" * size))
    return bytes(content)


CHANGES = (
    _flip_a_bit,
    _flip_a_bit,
    _other_byte,
    _cut,
    _zero_a_page,
    _zeros_to_the_end,
    _leave_out,
    _put_in,
    _say_it_twice,
    _large_number,
)
