"""The pipeline that DALI runs: files and boxes in, pixels out."""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from fastarat.common.errors import UserError

Inputs = tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]
"""n images: their files, uint8 [length] each; int32 [n, 2]: (left, top); int32 [n, 2]: (width, height); float32 [n, 2]:
the (height, width) wanted."""

BLACK: Inputs = (
    [np.frombuffer(b"P6\n1 1\n255\n\0\0\0", np.uint8)],
    np.zeros((1, 2), np.int32),
    np.ones((1, 2), np.int32),
    np.ones((1, 2), np.float32),
)
"""What DALI, which cannot do nothing, gets for a request of no images."""

EXTENSIONS = "NVIMGCODEC_EXTENSIONS_PATH"
GPU_CODECS = ("libnvjpeg", "libnvtiff")
PREFIX = "fastarat-codecs-"


def require(device: Literal["cpu", "gpu"]) -> None:
    """Raise `UserError` if DALI is not installed, or JPEGs cannot be decoded on a GPU here."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise UserError(f"DALI is not installed: {_installed_by()}") from error
    _choose_codecs(device)
    if device == "gpu":
        _require_gpu()


def build(source: Callable[[], Inputs], most: int, *, workers: int, gpu: int | None, depth: int) -> Any:
    """A `nvidia.dali.Pipeline` of `workers` threads that cuts and resizes up to `most` images at a time, uint8 [H, W,
    3] each, and works on `depth` such lots at once; it decodes on the CPU, or on the GPU of the number `gpu`.

    It ends when `source` raises `StopIteration`. Its threads end when it is deleted.
    """
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(most, workers, gpu, prefetch_queue_depth=depth)
    with pipeline:
        files, corners, extents, sizes = fn.external_source(source, num_outputs=4, no_copy=gpu is None)
        parts = fn.decoders.image_slice(
            files,
            corners,
            extents,
            device="cpu" if gpu is None else "mixed",
            axis_names="WH",
            normalized_anchor=False,
            normalized_shape=False,
            adjust_orientation=False,  # PIL leaves images as they are stored too
            jpeg_fancy_upsampling=True,
            output_type=types.DALIImageType.RGB,
        )
        pipeline.set_outputs(
            fn.resize(parts, size=sizes, interp_type=types.DALIInterpType.INTERP_LINEAR, antialias=True)
        )
    pipeline.build()
    return pipeline


def is_left_to_pil(content: bytes) -> bool:
    """Whether DALI has other pixels for a file than PIL, or none, or pixels for what is refused.

    These are JPEGs of four colours (CMYK, in one of two kinds that only the programs that wrote them tell apart), PNGs
    with something missing or added at their end, and PNGs of 16 bits.
    """
    if content[:4] == b"\x89PNG":
        return content[24:25] == b"\x10" or content[-8:-4] != b"IEND"
    return content[:2] == b"\xff\xd8" and _num_colours(content) == 4


def _num_colours(content: bytes) -> int:
    """The number of a JPEG's colours, from its frame header (ITU T.81, B.2.2); 0 if it has none."""
    at = 2
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return content[at + 9]
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return 0


def as_ppm(size: tuple[int, int], pixels: bytes) -> bytes:
    """Pixels [H, W, 3] as a file, which a decoder only has to copy."""
    return b"P6\n%d %d\n255\n" % size + pixels


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError("--loading.decode gpu needs a CUDA device: leave it out to decode on the CPU")
    try:
        none = np.zeros((0, 2))
        build(lambda: ([], none, none, none), 1, workers=1, gpu=torch.cuda.current_device(), depth=1)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"DALI cannot decode on this GPU ({reason}): decode on the CPU") from error
    # Without nvJPEG it would decode on the CPU and say so nowhere.
    loaded = Path("/proc/self/maps").read_text()
    if "libnvjpeg_ext" in loaded and "libnvjpeg.so" not in loaded:
        raise UserError(f"--loading.decode gpu needs NVIDIA's nvJPEG: {_installed_by()} brings it")


def _installed_by() -> str:
    """The command that brings the DALI of this torch's CUDA."""
    import torch

    return f"pip install 'fastarat[{'dali12' if (torch.version.cuda or '').startswith('12.') else 'dali'}]'"


def _choose_codecs(device: Literal["cpu", "gpu"]) -> None:
    """On the CPU without GPU codecs, which print lines about missing libraries whenever a pipeline is built."""
    if PREFIX in os.environ.get(EXTENSIONS, ""):
        del os.environ[EXTENSIONS]  # this process's, or that of one that started it
    if device == "cpu" and EXTENSIONS not in os.environ and (folder := _cpu_codecs()):
        os.environ[EXTENSIONS] = folder.name


@cache
def _cpu_codecs() -> TemporaryDirectory[str] | None:
    """A folder of links to all but the GPU's codecs; None where there are none, or it cannot be made."""
    package = find_spec("nvidia.nvimgcodec")
    places = package.submodule_search_locations if package else None
    codecs = sorted(Path(places[0], "extensions").glob("*.so*")) if places else []
    if not codecs:
        return None
    try:
        folder = TemporaryDirectory(prefix=PREFIX)
        for codec in codecs:
            if not codec.name.startswith(GPU_CODECS):
                Path(folder.name, codec.name).symlink_to(codec)
        return folder
    except OSError:
        return None
