"""Streamed batches on a GPU: the resident loader's bit by bit, while the step before still runs."""

import io

import numpy as np
import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON
from PIL import Image

from fastarat.data.images.dataset import Images
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders.plain import PlainDecoder
from fastarat.data.loading.resident import ResidentLoader
from fastarat.data.loading.sampling import Sampling
from fastarat.data.loading.streaming import StreamLoader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
COUNT, BATCH = 256, 32


@pytest.fixture
def images(tmp_path) -> tuple[StoredImages, Images]:
    """PNGs of coloured noise in one file, and their pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    contents = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    (tmp_path / "images").write_bytes(b"".join(contents))
    lengths = np.array([len(content) for content in contents], np.int64)
    labels = np.arange(COUNT, dtype=np.int64)
    stored = StoredImages(
        (str(tmp_path / "images"),),
        np.zeros(COUNT, np.int32),
        np.cumsum(lengths) - lengths,
        lengths,
        np.zeros(COUNT, bool),
        np.full((COUNT, 2), 32, np.int32),
        labels,
        tuple(map(str, labels)),
    )
    return stored, Images(pixels, labels)


@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_batches_are_the_resident_ones_and_nobody_waits_for_the_device(images, kernels, dtype):
    stored, decoded = images
    device = torch.device("cuda", 0)
    sampling, place = Sampling(BATCH, seed=0), {"device": device, "dtype": dtype, "kernels": kernels}
    resident = ResidentLoader(decoded, 255, sampling, **place)
    streamed = StreamLoader(stored, PlainDecoder(stored, 2, pin=True), sampling, **place)
    busy = torch.randn(4096, 4096, device=device)
    batches = streamed.batches(1)
    kept = [next(batches)]
    torch.cuda.set_sync_debug_mode("error")  # from here on the host waits for the device in nothing
    try:
        for batch in batches:
            kept.append(batch)
            for _ in range(20):  # the device falls behind the host, as it does in training
                busy = busy @ busy / 64
    finally:
        torch.cuda.set_sync_debug_mode("default")
        streamed.close()
    for ours, theirs in zip(kept, resident.batches(1), strict=True):
        assert all(torch.equal(mine, their) for mine, their in zip(ours, theirs, strict=True))
