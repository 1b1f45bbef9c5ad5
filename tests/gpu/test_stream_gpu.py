"""Streamed batches on a GPU: the resident loader's bit by bit, while the step before still runs."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON
from PIL import Image

from fastarat.data.images.dataset import Images, from_splits
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders.dali import DALIDecoder
from fastarat.data.loading.decoders.decoder import Decoder
from fastarat.data.loading.decoders.ffcv import FFCVDecoder
from fastarat.data.loading.decoders.plain import PlainDecoder
from fastarat.data.loading.resident import ResidentLoader
from fastarat.data.loading.sampling import Sampling
from fastarat.data.loading.streaming import StreamLoader
from tests.helpers.beton_sets import built, reopened
from tests.helpers.optional import needs_dali, needs_ffcv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
COUNT, BATCH = 256, 32


def noise() -> Images:
    """Coloured noise; each has a label of its own, so that no other one's passes for it."""
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    return Images(pixels, np.arange(COUNT, dtype=np.int64))


def pngs(images: Images, folder: Path) -> StoredImages:
    """The images as PNGs in one file."""
    contents = []
    for image in images.images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    (folder / "images").write_bytes(b"".join(contents))
    lengths = np.array([len(content) for content in contents], np.int64)
    return StoredImages(
        (str(folder / "images"),),
        np.zeros(COUNT, np.int32),
        np.cumsum(lengths) - lengths,
        lengths,
        np.zeros(COUNT, bool),
        np.full((COUNT, 2), 32, np.int32),
        images.labels,
        tuple(map(str, range(COUNT))),
    )


def a_beton(images: Images, folder: Path) -> StoredImages:
    """The images as FFCV has them, uncompressed."""
    dataset = from_splits("noise", images, images, tuple(map(str, range(COUNT))))
    return reopened(built(dataset, folder / "images.beton", mode="raw")).train


STORED = {PlainDecoder: pngs, DALIDecoder: pngs, FFCVDecoder: a_beton}
CELLS = [
    *[(PlainDecoder, kernels, dtype) for kernels in (PYTORCH, TRITON) for dtype in (torch.float32, torch.bfloat16)],
    pytest.param(DALIDecoder, TRITON, torch.bfloat16, marks=needs_dali),
    pytest.param(FFCVDecoder, TRITON, torch.bfloat16, marks=needs_ffcv),
]


def name_of(value: object) -> str:
    """A decoder's, kernels' or a format's."""
    return getattr(value, "__name__", None) or getattr(value, "name", str(value))


@pytest.mark.parametrize(("kind", "kernels", "dtype"), CELLS, ids=name_of)
def test_streamed_batches_are_the_resident_ones_and_nobody_waits_for_the_device(tmp_path, kind, kernels, dtype):
    images = noise()
    stored = STORED[kind](images, tmp_path)
    decoder: Decoder = kind(stored, 2, True)
    device = torch.device("cuda", 0)
    sampling, place = Sampling(BATCH, seed=0), {"device": device, "dtype": dtype, "kernels": kernels}
    resident = ResidentLoader(images, 255, sampling, **place)
    streamed = StreamLoader(stored, decoder, sampling, **place)
    batches = streamed.batches(1)
    kept = [next(batches)]
    torch.cuda.set_sync_debug_mode("error")  # from here on the host waits for the device in nothing
    try:
        for batch in batches:
            kept.append(batch)
            torch.cuda._sleep(10**8)  # cycles: the device falls behind the host, as it does in training
    finally:
        torch.cuda.set_sync_debug_mode("default")
        streamed.close()
    for ours, theirs in zip(kept, resident.batches(1), strict=True):
        assert all(torch.equal(mine, their) for mine, their in zip(ours, theirs, strict=True))
