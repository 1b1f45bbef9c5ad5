"""FFCV's native functions, compiled into one that decodes some rows of a batch without Python's lock."""

import ctypes
from collections.abc import Callable
from ctypes import c_bool, c_int, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastarat.common.errors import UserError
from fastarat.data.formats.crc32c import states_of_bytes

VERSION = "1.0."
READ_FAILED, DECODE_FAILED, CHANGED = 1, 2, 3
UNKNOWN = -1
"""for the checksum of an image that has none"""


def load() -> dict[str, Any]:
    """FFCV's `imdecode` (turbojpeg), `resize` (OpenCV, averaging areas) and `my_memcpy`, and the C library's `pread`.

    The library is loaded by itself: importing the package takes seconds and sets torch to one thread.
    Raises `UserError` if FFCV is not installed, or not this version.
    """
    spec = util.find_spec("ffcv")
    if spec is None or spec.origin is None:
        raise UserError("--loader ffcv needs FFCV: pip install 'fastarat[ffcv]'")
    version = metadata.version("ffcv")
    if not version.startswith(VERSION):
        raise UserError(f"--loader ffcv needs FFCV {VERSION}x, and {version} is here: pip install 'fastarat[ffcv]'")
    try:
        (path,) = Path(spec.origin).parent.glob("_libffcv*.so")
        library, c_library = ctypes.CDLL(str(path)), ctypes.CDLL(None)
    except (OSError, ValueError) as error:
        raise UserError(f"FFCV's library cannot be loaded ({error}): install FFCV again") from error
    counts = [c_uint32] * 2
    jpeg = [c_void_p, c_uint64, *counts, c_void_p, *counts, *counts, *counts, c_bool, c_bool]
    return {
        "imdecode": _declared(library.imdecode, jpeg, c_int),
        "resize": _declared(library.resize, [c_int64] * 11, None),
        "memcpy": _declared(library.my_memcpy, [c_void_p, c_void_p, c_uint64], None),
        "pread": _declared(c_library.pread, [c_int, c_void_p, c_uint64, c_int64], c_int64),
    }


def _declared(function: Any, arguments: list[Any], result: Any) -> Any:
    function.argtypes, function.restype = arguments, result
    return function


class Stored(NamedTuple):
    """Where n images lie, as in `StoredImages`."""

    starts: np.ndarray
    """int64 [n]"""
    lengths: np.ndarray
    """int64 [n]"""
    crc32: np.ndarray
    """int64 [n]; `UNKNOWN` is not compared"""
    raw: np.ndarray
    """bool [n]"""
    sizes: np.ndarray
    """int64 [n, 2]"""


@cache
def compile_rows() -> Callable[..., None]:
    """The function `rows`, compiled (about a second, once a process).

    `rows(file, stored, boxes, out, scratch, status, done)` reads the images `stored` in `file` (a descriptor), compares
    each with its CRC-32, and writes the part `boxes[i]` of it into `out[i]` (uint8 [n, H, W, 3]). `scratch` has room
    for a stored and for a decoded image, uint8 each. `status[i]` becomes 0, `READ_FAILED`, `DECODE_FAILED` or
    `CHANGED`, and `done[0]` grows by one for each image. Boxes (int64, as in `Request`) must lie inside. Raises as
    `load` does.
    """
    native = load()
    try:
        from numba import njit
    except ImportError as error:  # numba refuses a numpy that is newer than itself
        raise UserError(
            f"FFCV needs numba, which cannot be imported ({error}): pip install 'fastarat[ffcv]'"
        ) from error
    has_read, crc32_of = _compiled_reading(njit, native), _compiled_crc32(njit)
    fit, decode_jpeg = _compiled_decoding(njit, native)

    @njit(nogil=True)
    def rows(file, stored, boxes, out, scratch, status, done):
        content, pixels = scratch
        for i in range(len(boxes)):
            length = stored.lengths[i]
            width, height = stored.sizes[i]
            left, top, box_width, box_height = boxes[i]
            if not has_read(file, content, length, stored.starts[i]):
                status[i] = READ_FAILED
            elif stored.crc32[i] != UNKNOWN and crc32_of(content, length) != stored.crc32[i]:
                status[i] = CHANGED
            elif stored.raw[i]:
                fit(content, width, height, left, top, left + box_width, top + box_height, out[i])
            else:
                status[i] = decode_jpeg(content, length, width, height, boxes[i], out[i], pixels)
            done[0] += 1

    number, numbers, content = np.zeros(0, np.int64), np.zeros((0, 4), np.int64), np.zeros(0, np.uint8)
    none = Stored(number, number, number, np.zeros(0, bool), numbers[:, :2].copy())
    rows(0, none, numbers, np.zeros((0, 1, 1, 3), np.uint8), (content, content), number, number)
    return rows


def _compiled_reading(njit: Callable[..., Any], native: dict[str, Any]) -> Callable[..., Any]:
    """A function of (file, content uint8 [n], length, start) that reads into `content`, and says whether all came."""
    pread = native["pread"]

    @njit(nogil=True)
    def has_read(file, content, length, start):
        got = 0
        while got < length:  # a network's disk may give less at a time
            count = pread(file, content.ctypes.data + got, length - got, start + got)
            if count <= 0:
                return False
            got += count
        return True

    return has_read


def _compiled_crc32(njit: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (content uint8 [n], length) as zlib's, eight bytes at a time (Kounavis and Berry, 2005,
    "slicing-by-8")."""
    t0, t1, t2, t3, t4, t5, t6, t7 = _crc32_tables()
    eight, sixteen, twenty_four, low_byte = np.uint32(8), np.uint32(16), np.uint32(24), np.uint32(0xFF)

    @njit(nogil=True)
    def crc32_of(content, length):
        crc, whole = np.uint32(0xFFFFFFFF), length // 8
        words = content[: 8 * whole].view(np.uint32)
        for i in range(whole):
            a, b = words[2 * i] ^ crc, words[2 * i + 1]
            crc = t7[a & low_byte] ^ t6[a >> eight & low_byte] ^ t5[a >> sixteen & low_byte] ^ t4[a >> twenty_four]
            crc ^= t3[b & low_byte] ^ t2[b >> eight & low_byte] ^ t1[b >> sixteen & low_byte] ^ t0[b >> twenty_four]
        for i in range(8 * whole, length):
            crc = t0[(crc ^ content[i]) & low_byte] ^ crc >> eight
        return crc ^ np.uint32(0xFFFFFFFF)

    return crc32_of


def _compiled_decoding(njit: Callable[..., Any], native: dict[str, Any]) -> tuple[Callable[..., Any], ...]:
    """The functions that bring a part of pixels, or of a JPEG, into its place in the batch."""
    imdecode, resize, memcpy = native["imdecode"], native["resize"], native["memcpy"]

    @njit(nogil=True)
    def reduction(width, height, out_width, out_height):
        """JPEG can be decoded at 1/2, 1/4 and 1/8 of its size: the least that still has the pixels asked for."""
        factor = 8
        while factor > 1 and (width < factor * out_width or height < factor * out_height):
            factor //= 2
        return factor

    @njit(nogil=True)
    def fit(pixels, width, height, left, top, right, bottom, out):
        """The part of the image `pixels` in the size of `out`; with its own pixels where it has that size."""
        out_height, out_width = out.shape[0], out.shape[1]
        if right - left == out_width and bottom - top == out_height:
            for row in range(out_height):
                begin = 3 * ((top + row) * width + left)
                memcpy(pixels.ctypes.data + begin, out.ctypes.data + 3 * row * out_width, 3 * out_width)
        else:
            target = out.ctypes.data
            resize(0, pixels.ctypes.data, height, width, top, bottom, left, right, target, out_height, out_width)

    @njit(nogil=True)
    def decode_jpeg(content, length, width, height, box, out, pixels):
        left, top, box_width, box_height = box
        factor = reduction(box_width, box_height, out.shape[1], out.shape[0])
        source = content.ctypes.data
        failed = imdecode(
            source, length, height, width, pixels.ctypes.data, height, width, 0, 0, 1, factor, False, False
        )
        if failed:
            return DECODE_FAILED
        half = factor // 2
        right, bottom = (left + box_width + half) // factor, (top + box_height + half) // factor
        left, top = (left + half) // factor, (top + half) // factor
        width, height = (width + factor - 1) // factor, (height + factor - 1) // factor
        fit(pixels, width, height, left, top, right, bottom, out)
        return 0

    return fit, decode_jpeg


def _crc32_tables() -> list[np.ndarray]:
    """Eight uint32 [256]: the state of a CRC-32 after a byte, and after zero to seven bytes of zeros behind it."""
    tables = [states_of_bytes(0xEDB88320)]
    for _ in range(7):
        tables.append(tables[0][tables[-1] & 0xFF] ^ tables[-1] >> 8)
    return tables
