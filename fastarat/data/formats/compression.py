"""What gzip, xz and bzip2 files hold, in pieces, all of their own checks compared to the very end.

Python's modules for these formats pass over what follows the first stream where it is damaged, and `tarfile` compares
no checksum of gzip's.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from fastarat.data.images.damaged import Damaged

PIECE = 1 << 20
"""bytes read, and at most given, at a time"""
MOST_FOLD = 1032
"""as small as deflate can make anything; xz and bzip2 make only what is hostile smaller"""
MOST_MEMORY = 1 << 30
"""bytes that an xz file may ask for; `xz -9` asks for 65 MiB"""
DECODERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16),
    b"\xfd7zXZ": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_MEMORY),
    b"BZh": bz2.BZ2Decompressor,
}
"""by what a file begins with"""


def is_compressed(beginning: bytes) -> bool:
    """Whether a file that begins so is compressed."""
    return beginning.startswith(tuple(DECODERS))


def unpacked(file: IO[bytes]) -> Iterator[bytes]:
    """The content of a file in pieces, whether it is compressed or not.

    Raises `Damaged` where a check fails, the file ends early, or something but zeros follows its end.
    """
    data = file.read(PIECE)
    make = next((make for magic, make in DECODERS.items() if data.startswith(magic)), None)
    if make is None:
        while data:
            yield data
            data = file.read(PIECE)
        return
    given = 0
    while data:  # a stream may follow another
        decoder = make()
        while not decoder.eof:
            if not data and getattr(decoder, "needs_input", True) and not (data := file.read(PIECE)):
                raise Damaged("it ends early")
            piece = _decoded(decoder, data)
            data = getattr(decoder, "unconsumed_tail", b"")  # zlib's; the others keep it
            given += len(piece)
            if given > MOST_FOLD * (file.tell() + PIECE):
                raise Damaged(f"it unpacks to more than {given:,} bytes, which is no archive of images")
            if piece:
                yield piece
        data = decoder.unused_data
        while not (data := data.lstrip(b"\0")) and (data := file.read(PIECE)):
            pass


def _decoded(decoder: Any, data: bytes) -> bytes:
    try:
        return decoder.decompress(data, PIECE)
    except (zlib.error, lzma.LZMAError, OSError, ValueError) as error:  # the last two are bz2's
        raise Damaged(str(error).rpartition(": ")[2]) from error
