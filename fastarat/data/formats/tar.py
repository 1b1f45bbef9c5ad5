"""The members of a tar archive, front to back; nothing in a header is believed before its checksum and the file agree.

Read are ustar, and the long names of GNU and pax; anything else is refused by name. Python's `tarfile` is made for
archives of friends: it takes a header with a wrong checksum for the end, believes negative sizes (CVE-2025-8194) and
follows extended headers as deep as they go.
"""

import os
from collections.abc import Iterator
from typing import IO, Literal, NamedTuple

from fastarat.common.console import one_line
from fastarat.data.images.damaged import Damaged, Unread

BLOCK = 512
ZEROS = bytes(BLOCK)
MOST_EXTENDED = 1 << 20
"""bytes of an extended header: more than any system's names"""
RECORDS = (20 * BLOCK, *(BLOCK << n for n in range(12)))
"""bytes of the records that archives are filled up to: tar's own, and powers of 2"""
Kind = Literal["file", "folder", "link", "hard link", "device"]
KINDS: dict[bytes, Kind] = {
    **dict.fromkeys((b"0", b"\0", b"7"), "file"),
    b"1": "hard link",
    b"2": "link",
    **dict.fromkeys((b"3", b"4", b"6"), "device"),
    b"5": "folder",
}
LONG_NAMES = {b"L": "path", b"K": "linkpath"}
PAX, PAX_GLOBAL, LABEL = (b"x", b"X"), b"g", b"V"


class Member(NamedTuple):
    """A file, folder or link in an archive."""

    name: str
    """as it is written, without '.' and empty parts; '' for the root"""
    kind: Kind
    offset: int
    """its first byte"""
    size: int
    """its number of bytes"""
    target: str
    """of a link: the name of what it stands for"""


class Plain:
    """A file as it is, of which only what is asked for is read; `at` is the next byte.

    Every method raises `Damaged` where there are fewer bytes than are asked for.
    """

    def __init__(self, file: IO[bytes]):
        self.at, self._descriptor = 0, file.fileno()
        self._size = os.fstat(self._descriptor).st_size

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        content = self.read(self.at, count)
        self.at += count
        return content

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        self._require(self.at, count)
        self.at += count

    def rest(self, most: int) -> bytes:
        """All that is left, or at least `most` bytes of it."""
        return self.take(min(most, self._size - self.at))

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on."""
        self._require(offset, count)
        parts, left = [], count
        while left:  # a network's disk may give less at a time
            parts.append(os.pread(self._descriptor, left, offset + count - left))
            left -= len(parts[-1])
            if not parts[-1]:
                raise Damaged("it became shorter while it was read")
        return b"".join(parts)

    def _require(self, offset: int, count: int) -> None:
        if count > self._size - offset:
            raise Damaged(f"its end is missing: {count:,} bytes from byte {offset:,} on, of {self._size:,} in all")


class Unpacked:
    """The pieces of a stream, each of which comes once; the methods are those of `Plain`."""

    def __init__(self, pieces: Iterator[bytes]):
        self.at, self._pieces, self._piece = 0, pieces, memoryview(b"")

    def take(self, count: int) -> bytes:
        parts = []
        while count:
            parts.append(self._next(count))
            count -= len(parts[-1])
        return b"".join(parts)

    def read(self, offset: int, count: int) -> bytes:
        assert offset == self.at, "a member of a stream can be read once"
        return self.take(count)

    def skip(self, count: int) -> None:
        while count:
            count -= len(self._next(count))

    def rest(self, most: int) -> bytes:
        parts, found = [bytes(self._piece)], len(self._piece)
        for piece in self._pieces:
            parts.append(piece)
            found += len(piece)
            if found >= most:
                break
        self._piece = memoryview(b"")
        self.at += found
        return b"".join(parts)

    def _next(self, most: int) -> memoryview:
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                raise Damaged("its end is missing")
            self._piece = memoryview(piece)
        part, self._piece = self._piece[:most], self._piece[most:]
        self.at += len(part)
        return part


Archive = Plain | Unpacked


def members(archive: Archive) -> Iterator[Member]:
    """Every member; its bytes can be taken from the archive until the next is asked for.

    What follows the last, up to the archive's end, must be zeros. Raises `Damaged`, and `Unread` for a kind of file
    that not every tar has.
    """
    said: dict[str, bytes] | None = None  # of the next member, by the extended headers in front of it
    while (header := archive.take(BLOCK)) != ZEROS:
        _require_checksum(header, archive.at - BLOCK)
        kind, size = header[156:157], _number(header[124:136], "size")
        if kind in LONG_NAMES:
            said = {**(said or {}), LONG_NAMES[kind]: _extended(archive, size).split(b"\0")[0]}
        elif kind in PAX:
            said = {**(said or {}), **_pax(_extended(archive, size))}
        elif kind == PAX_GLOBAL:
            if _pax(_extended(archive, size)):
                raise Damaged("one name for all of its files")
        elif kind == LABEL:
            archive.skip(_padded(size))
        else:
            member = _member(header, kind, archive.at, size, said or {})
            said, end = None, member.offset + _padded(member.size)
            yield member
            archive.skip(end - archive.at)
    if said is not None:
        raise Damaged("its last header has no file")
    _require_end(archive)


def _require_checksum(header: bytes, at: int) -> None:
    """The sum of all bytes, as if those of the sum itself were spaces; some wrote it of signed bytes."""
    sums, own = header[:148] + header[156:], _number(header[148:156], "checksum")
    plain = sum(sums) + 8 * 32
    if own != plain and own != plain - 256 * sum(byte > 127 for byte in sums):
        raise Damaged(f"a header with a wrong checksum at byte {at:,}")


def _number(field: bytes, what: str) -> int:
    """A number of octal digits, or after a byte of 128 a binary number, from 0. Raises `Damaged` for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip(b" ")
    if field[0] & 0x80 or digits.strip(b"01234567"):
        raise Damaged(f"a header's {what} is no number")
    return int(digits or b"0", 8)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _extended(archive: Archive, size: int) -> bytes:
    if size > MOST_EXTENDED:
        raise Damaged(f"an extended header of {size:,} bytes")
    return archive.take(_padded(size))[:size]


def _pax(content: bytes) -> dict[str, bytes]:
    """The records `LENGTH KEY=VALUE\\n` that say where and what a member is."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(content):
        digits = content[at : at + 8].split(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, is_there, value = content[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if at + length > len(content) or content[at + length - 1 : at + length] != b"\n" or not is_there:
            raise Damaged("an extended header that is no list of records")
        if key.startswith(b"GNU.sparse."):
            found["sparse"] = value
        elif key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = value
        at += length
    return found


def _member(header: bytes, kind: bytes, offset: int, size: int, said: dict[str, bytes]) -> Member:
    raw, target = (header[start : start + 100].split(b"\0")[0] for start in (0, 157))
    prefix = header[345:500].split(b"\0")[0]
    if prefix and header[257:263] == b"ustar\0":
        raw = prefix + b"/" + raw
    raw, target = said.get("path", raw), said.get("linkpath", target)
    name = _name(raw)
    if kind == b"S" or "sparse" in said:
        raise Unread(f"{one_line(name, 200)} is stored with its holes left out: pack it without --sparse")
    if kind not in KINDS:
        shown = f"{one_line(name, 200)} is of a kind ({kind.decode('latin-1')!a})"
        raise Unread(f"{shown} that not every tar has: pack it again")
    if "size" in said:
        if not said["size"].isdigit() or len(said["size"]) > 20:
            raise Damaged("an extended header's size is no number")
        size = int(said["size"])
    is_folder = KINDS[kind] == "folder" or (kind == b"\0" and raw.endswith(b"/"))  # the latter in the oldest archives
    if not name and not is_folder:
        raise Damaged("a file without a name")
    found = "folder" if is_folder else KINDS[kind]
    return Member(name, found, offset, size if found == "file" else 0, _name(target))


def _name(raw: bytes) -> str:
    """Bytes that are no UTF-8 become what Python makes of such names on a disk."""
    if b"\0" in raw:
        raise Damaged("a name with a zero byte")
    parts = raw.decode("utf-8", "surrogateescape").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _require_end(archive: Archive) -> None:
    """A file that lost its end to zeros, as after a power cut, looks like an archive that ends there: it has more of
    them than an archive is filled up with."""
    most = max(RECORDS) + BLOCK
    rest = archive.rest(most + 1)
    record = max((size for size in RECORDS if archive.at % size == 0), default=BLOCK)
    if rest.strip(b"\0"):
        raise Damaged("something but zeros follows its end")
    if len(rest) > record + BLOCK:
        raise Damaged(f"its last {len(rest) + BLOCK:,} bytes are zeros")
