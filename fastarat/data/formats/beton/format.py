"""The .beton format, version 2, as FFCV 1.0 reads and writes it; numbers are little-endian.

A file is a header, a description of each field, a struct of all fields for every image, pages with the images' bytes
(from a multiple of the page size on; no image crosses a page's end), and a table of where each image's bytes are.
"""

import numpy as np

VERSION = 2
MIN_PAGE = 1 << 21
MAX_PAGE = 1 << 31  # the largest power of 2 that the header can hold
MAX_SIDE = 2**16 - 1
FLOAT, INT, IMAGE = 0, 1, 2  # types of fields; FFCV has more, for other things than images and labels
JPEG, RAW = 0, 1  # how an image is stored
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"

HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table", "<u8")],
    align=True,
)
FIELD = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
ENTRY = np.dtype([("image", "<u8"), ("start", "<u8"), ("length", "<u8")])
STORED_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("start", "<u8")])
STORED = {FLOAT: np.dtype("<f8"), INT: np.dtype("<i8"), IMAGE: STORED_IMAGE}

FIELDS = {"image": IMAGE, "label": INT, "split": INT}
"""What `fastarat data build` writes; `split` is 0 for a training and 1 for a test image."""


def struct_of(fields: dict[str, int]) -> np.dtype:
    """The struct that an image has in the file, for these names and types of fields."""
    return np.dtype([(name, STORED[kind]) for name, kind in fields.items()], align=True)


def aligned(position: int, size: int) -> int:
    """The next multiple of `size` from `position` on."""
    return -(-position // size) * size
