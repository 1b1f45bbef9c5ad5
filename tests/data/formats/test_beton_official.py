"""FFCV's own reader and loader take a file that fastarat wrote, and fastarat takes one that FFCV wrote."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastarat.data.formats.beton import file as beton
from fastarat.data.images.whole_sets import one_size_of
from fastarat.data.loading.decoders.decoder import Request
from fastarat.data.loading.decoders.ffcv import FFCVDecoder
from tests.helpers.beton_sets import built, folder_contents, pixel_contents, pixels, refusal, reopened
from tests.helpers.optional import needs_ffcv
from tests.helpers.small_sets import jpeg
from tests.helpers.unmeasured import UNMEASURED

pytestmark = needs_ffcv

# In processes of their own: importing ffcv sets torch to one thread, and its loader leaves threads behind.
WRITES = """
import sys
import numpy as np
from pathlib import Path
from ffcv.fields import FloatField, IntField, RGBImageField
from ffcv.writer import DatasetWriter

class Noise:
    def __init__(self, extra):
        self.images = np.random.default_rng(1).integers(0, 256, (20, 24, 16, 3), dtype=np.uint8)
        self.extra = extra
    def __len__(self):
        return len(self.images)
    def __getitem__(self, i):
        return (self.images[i], i % 4) + self.extra

def write(path, extra, fields, **options):
    fields = {"image": RGBImageField(**options), "label": IntField(), **fields}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Noise(extra), chunksize=3)

folder = Path(sys.argv[1])
write(folder / "ffcv-raw.beton", (), {})
write(folder / "ffcv-jpeg.beton", (0.5,), {"weight": FloatField()}, write_mode="jpg", jpeg_quality=90)
write(folder / "ffcv-two.beton", (3,), {"other": IntField()})
np.save(folder / "noise.npy", Noise(()).images)
"""
READS = """
import sys
import numpy as np
from pathlib import Path
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader

def read(path):
    reader = Reader(str(path))
    names, table = np.array(reader.field_names), reader.alloc_table["sample_id"]
    found = {"count": reader.num_samples, "names": names, "table": table}
    for cache in (True, False):
        decoders = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()], "split": [IntDecoder()]}
        loader = Loader(str(path), batch_size=5, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=cache,
                        pipelines=decoders, drop_last=False)
        batches = [[part.copy() for part in batch] for batch in loader]
        for name, parts in zip(("image", "label", "split"), zip(*batches)):
            found[f"{name}{int(cache)}"] = np.concatenate(parts)
    np.savez(path.with_suffix(".npz"), **found)

for name in ("raw", "jpeg"):
    read(Path(sys.argv[1]) / f"{name}.beton")
"""


def run(script: str, folder: Path, **variables: str) -> None:
    environment = {**os.environ, **UNMEASURED, **variables}
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of both."""
    folder = tmp_path_factory.mktemp("official")
    for i in range(23):
        place = folder / "photos" / ("train" if i < 14 else "test") / ("cat" if i % 3 else "dog") / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpeg(i, 40, 24))
    built(folder_contents(folder / "photos"), folder / "jpeg.beton", mode="jpeg")
    built(pixel_contents(14, 9, 20), folder / "raw.beton", mode="raw")
    run(WRITES, folder, NUMBA_DISABLE_JIT="1")  # importing ffcv compiles for seconds, and its writer runs none of it
    return folder


@pytest.fixture(scope="module")
def read_by_ffcv(folder) -> Path:
    """The same, with what FFCV has read from ours, for which it compiles its loader."""
    run(READS, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["raw", "jpeg"])
@pytest.mark.parametrize("cache", [True, False])
def test_ffcv_reads_our_file_as_we_do(read_by_ffcv, mode, cache):
    data = reopened(read_by_ffcv / f"{mode}.beton")
    with np.load(read_by_ffcv / f"{mode}.npz") as found:
        assert found["count"] == 23 and found["names"].tolist() == ["image", "label", "split"]
        assert found["table"].tolist() == list(range(23))
        labels = np.concatenate([data.train.labels, data.test.labels])
        assert found[f"label{int(cache)}"][:, 0].tolist() == labels.tolist()
        assert found[f"split{int(cache)}"][:, 0].tolist() == [0] * 14 + [1] * 9
        ours = np.concatenate([decoded(data.train), decoded(data.test)])
        assert np.array_equal(found[f"image{int(cache)}"], ours)
        assert mode == "jpeg" or np.array_equal(ours[3], pixels(data.train, 3))


def decoded(images) -> np.ndarray:
    size = one_size_of(images)
    boxes = np.tile(np.array([0, 0, *size], np.int32), (len(images), 1))
    decoder = FFCVDecoder(images, 2, False)
    (batch,) = decoder.decode([Request(np.arange(len(images)), boxes, size)])
    decoder.close()
    return batch.numpy()


def test_a_file_that_ffcv_wrote_is_a_training_set(folder):
    noise = np.load(folder / "noise.npy")
    data = reopened(folder / "ffcv-raw.beton")
    assert len(data.train) == 20 and len(data.test) == 0 and data.classes == ("0", "1", "2", "3")
    assert data.train.labels.tolist() == [i % 4 for i in range(20)]
    assert np.array_equal(decoded(data.train), noise) and np.array_equal(pixels(data.train, 7), noise[7])
    assert beton.problems(folder / "ffcv-raw.beton") == []


def test_a_file_that_ffcv_wrote_may_hold_jpegs_and_numbers_besides(folder):
    data = reopened(folder / "ffcv-jpeg.beton")
    assert not data.train.raw.any() and one_size_of(data.train) == (16, 24)
    assert decoded(data.train).shape == (20, 24, 16, 3)
    assert beton.info(folder / "ffcv-jpeg.beton")["test"]["images"] == 0


def test_the_label_is_told_by_its_name(folder):
    content = (folder / "ffcv-two.beton").read_bytes()
    assert reopened(folder / "ffcv-two.beton").train.labels.max() == 3
    unclear = folder / "unclear.beton"
    unclear.write_bytes(content.replace(b"label\0", b"class\0", 1))
    assert "has the fields image, class, other" in refusal(unclear)
