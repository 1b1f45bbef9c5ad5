"""DALI decodes on the GPU what PIL decodes, but for rounding, in batches that stay what they were."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders.dali import DALIDecoder
from fastarat.data.loading.decoders.decoder import Request
from tests.helpers import simulated_gpu
from tests.helpers.loading import settled, tasks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(simulated_gpu.IS_HERE, reason="DALI cannot decode on a simulated GPU"),
]
SIZE = (160, 120)


def smooth(seed: int) -> Image.Image:
    """Colours that change slowly, as those of photographs do."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)


def content(seed: int) -> bytes:
    """JPEGs, and now and then what is left to PIL or to the CPU: CMYK, PNG, grey PNG."""
    mode, kind = {3: ("CMYK", "JPEG"), 5: ("RGB", "PNG"), 7: ("L", "PNG")}.get(seed, ("RGB", "JPEG"))
    buffer = io.BytesIO()
    smooth(seed).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path) -> StoredImages:
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    paths = tuple(str(tmp_path / str(i)) for i in range(16))
    for i, path in enumerate(paths):
        Path(path).write_bytes(content(i))
    return StoredImages(
        paths,
        np.arange(16, dtype=np.int32),
        np.zeros(16, np.int64),
        np.array([Path(path).stat().st_size for path in paths]),
        np.zeros(16, bool),
        np.tile(np.array(SIZE, np.int32), (16, 1)),
        np.arange(16),
        paths,
    )


def request(index: range, box: tuple[int, int, int, int], size: tuple[int, int]) -> Request:
    return Request(np.array(index), np.tile(np.array(box, np.int32), (len(index), 1)), size)


def parts(index: range, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    left, top, width, height = box
    found = [Image.open(io.BytesIO(content(i))).convert("RGB") for i in index]
    found = [image.crop((left, top, left + width, top + height)) for image in found]
    resized = [image if image.size == size else image.resize(size, Image.Resampling.BILINEAR) for image in found]
    return np.stack([np.asarray(image) for image in resized])


@pytest.mark.parametrize("size", [(100, 80), (48, 48)])
def test_the_gpu_decodes_what_pil_decodes_but_for_rounding(images, size):
    box = (7, 9, 100, 80)
    (batch,) = DALIDecoder(images, 2, gpu=torch.device("cuda")).decode([request(range(16), box, size)])
    assert batch.is_cuda and batch.dtype == torch.uint8 and batch.shape == (16, size[1], size[0], 3)
    differences = np.abs(batch.cpu().numpy().astype(int) - parts(range(16), box, size))
    # Two decoders may round each coefficient's share and each colour's conversion differently: a level or two, and
    # three or four where both meet at an edge. The outermost ring is filtered differently when it is resized.
    assert differences[:, 2:-2, 2:-2].max() <= 4 and differences.mean() < 1
    if size == box[2:]:
        assert not differences[[3, 5, 7]].any()  # decoded on the CPU


def test_batches_are_not_overwritten_while_the_device_is_busy(images):
    decoder = DALIDecoder(images, 2, gpu=torch.device("cuda"))
    requests = (request(range(i % 9, i % 9 + 8), (0, 0, *SIZE), SIZE) for i in range(60))
    busy = torch.randn(2048, 2048, device="cuda")
    sums = []
    for batch in decoder.decode(requests):
        busy = torch.tanh(busy @ busy)  # the sum below is computed long after the next batches are made
        sums.append(batch.long().sum())
    alone = [batch.long().sum().item() for batch in decoder.decode([requests_at(i) for i in range(9)])]
    assert [total.item() for total in sums] == [alone[i % 9] for i in range(60)]


def requests_at(first: int) -> Request:
    return request(range(first, first + 8), (0, 0, *SIZE), SIZE)


def test_stopping_early_leaves_no_thread(images):
    decoder = DALIDecoder(images, 2, gpu=torch.device("cuda"))
    next(batches := decoder.decode(requests_at(i % 9) for i in range(100)))
    batches.close()  # the first pipeline also starts threads of CUDA, which stay
    before = tasks()
    next(batches := decoder.decode(requests_at(i % 9) for i in range(100)))
    batches.close()
    assert settled(before)
