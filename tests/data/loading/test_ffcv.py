"""FFCV's functions decode a .beton to the pixels that PIL decodes, and no fault hangs or gives a wrong image."""

import ctypes
import os
import subprocess
import sys
import tarfile
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastarat.common.errors import UserError, WorkError
from fastarat.data.images.dataset import from_splits
from fastarat.data.images.decoding import pixels_of
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders import ffcv, ffcv_native
from fastarat.data.loading.decoders.decoder import Request
from fastarat.data.loading.decoders.ffcv import FFCVDecoder
from fastarat.data.loading.sampling import central_boxes, random_boxes, whole_boxes
from tests.helpers.beton_sets import built, folder_contents, pixel_contents, pixels, reopened
from tests.helpers.optional import needs_ffcv
from tests.helpers.small_sets import one_line
from tests.helpers.unmeasured import UNMEASURED

pytestmark = needs_ffcv


def decoded(images: StoredImages, boxes: np.ndarray, size: tuple[int, int], workers: int = 2) -> np.ndarray:
    decoder = FFCVDecoder(images, workers, False)
    (batch,) = decoder.decode([Request(np.arange(len(boxes)), boxes, size)])
    decoder.close()
    assert batch.dtype == torch.uint8 and batch.is_contiguous()
    return batch.numpy()


def difference(images: StoredImages, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    reference = [pixels_of(images.file(i), box, size) for i, box in enumerate(boxes)]
    return np.abs(decoded(images, boxes, size).astype(int) - np.stack(reference))


def requests(images: StoredImages, count: int, batch: int = 4) -> list[Request]:
    index = np.arange(batch)
    return [Request((index + i) % len(images), whole_boxes(images.sizes[:batch]), (12, 12)) for i in range(count)]


@pytest.fixture
def noise(tmp_path) -> StoredImages:
    return reopened(built(pixel_contents(40), tmp_path / "noise.beton", mode="raw")).train


@pytest.fixture
def jpegs(photos, tmp_path) -> StoredImages:
    return reopened(built(folder_contents(photos), tmp_path / "jpegs.beton", mode="jpeg")).train


@pytest.fixture
def photographs(shared, tmp_path) -> StoredImages:
    """40 real photographs of various sizes."""
    path = shared("photos-320.tar")
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][::10][:40]
        sizes = [Image.open(tar.extractfile(member)).size for member in members]  # type: ignore[arg-type]
    n = len(members)
    offsets, lengths = (np.array([getattr(member, name) for member in members]) for name in ("offset_data", "size"))
    labels, names = np.zeros(n, np.int64), tuple(member.name for member in members)
    files, raw = np.zeros(n, np.int32), np.zeros(n, bool)
    images = StoredImages((str(path),), files, offsets, lengths, raw, np.array(sizes, np.int32), labels, names)
    contents = from_splits("photos", images, images.take(np.arange(1)), ("photo",))
    return reopened(built(contents, tmp_path / "photos.beton", mode="jpeg")).train


@pytest.mark.no_cover  # numba compiles, for all tests here
def test_pixels_are_exact_and_in_the_order_asked_for(noise):
    decoder = FFCVDecoder(noise, 2, False)
    asked = [np.array([5, 0, 39, 5]), np.array([7]), np.arange(40)[::-1]]
    boxes = [whole_boxes(noise.sizes[index]) for index in asked]
    batches = list(decoder.decode(Request(index, box, (12, 12)) for index, box in zip(asked, boxes, strict=True)))
    for index, batch in zip(asked, batches, strict=True):
        assert np.array_equal(batch.numpy(), np.stack([pixels(noise, i) for i in index]))
    decoder.close()


def test_a_part_of_the_size_asked_for_keeps_its_pixels(noise):
    boxes = np.array([[3, 1, 8, 6], [4, 6, 8, 6], [0, 0, 8, 6]], np.int32)
    out = decoded(noise, boxes, (8, 6))
    for i, (left, top, width, height) in enumerate(boxes):
        assert np.array_equal(out[i], pixels(noise, i)[top : top + height, left : left + width])


def test_a_part_twice_as_large_becomes_the_mean_of_its_pixels(noise):
    (out,) = decoded(noise, np.array([[2, 4, 8, 8]], np.int32), (4, 4))
    means = pixels(noise, 0)[4:12, 2:10].reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(out - means).max() <= 0.5


def test_a_jpeg_differs_from_pils_by_the_rounding_of_a_fast_cosine_transform(photographs):
    """FFCV asks libjpeg for its fast integer transform, PIL for the accurate one: measured up to 9 of 255, mean 1.0."""
    for i in range(8):
        one = photographs.take(np.array([i]))
        found = difference(one, whole_boxes(one.sizes), tuple(one.sizes[0].tolist()))
        assert 0 < found.mean() < 1.5 and found.max() <= 12
    part = difference(photographs, np.tile(np.array([31, 17, 100, 90], np.int32), (40, 1)), (100, 90))
    assert part.mean() < 1.5 and part.max() <= 12


@pytest.mark.parametrize(
    ("size", "most"),
    # FFCV averages areas, PIL weighs them by a triangle, and what libjpeg shrinks itself FFCV cuts at whole pixels:
    # measured means 1.3, 2.3, 2.0, 2.4, 1.9 of 255, least at sizes that no image is shrunk to by libjpeg. A part that
    # lies one output pixel beside the right one differs by 8 and more.
    [(224, 2.5), (160, 3.5), (128, 3.5), (64, 3.5), (40, 3.5)],
)
def test_a_resized_photograph_is_pils(photographs, size, most):
    found = difference(photographs, central_boxes(photographs.sizes, 1.0), (size, size))
    assert found.mean() < most


def test_a_random_part_of_a_photograph_is_pils(photographs):
    n = len(photographs)
    for seed in range(3):
        boxes = random_boxes(photographs.sizes, np.arange(n), (0.25, 1.0), seed=seed, epoch=1)
        assert difference(photographs, boxes, (96, 96)).mean() < 4.5


def test_any_number_of_workers_gives_the_same_pixels(photographs):
    boxes = central_boxes(photographs.sizes, 0.9)
    expected = decoded(photographs, boxes, (128, 128), workers=1)
    assert np.array_equal(decoded(photographs, boxes, (128, 128), workers=5), expected)


def test_batches_that_are_kept_stay_as_they_were(noise):
    decoder = FFCVDecoder(noise, 2, False)
    kept, copies = [], []
    for batch in decoder.decode(requests(noise, 30)):
        kept.append(batch)
        copies.append(batch.clone())
    assert len(kept) == 30 and all(map(torch.equal, kept, copies))
    assert len({batch.data_ptr() for batch in kept}) == 30
    decoder.close()


def test_stopping_early_leaves_no_thread(noise):
    before = set(threading.enumerate())
    decoder = FFCVDecoder(noise, 3, False)
    batches = decoder.decode(requests(noise, 10_000))
    next(batches)
    assert len(set(threading.enumerate()) - before) == 4
    batches.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before
    assert len(list(decoder.decode(requests(noise, 5)))) == 5
    assert set(threading.enumerate()) == before
    decoder.close()


def test_an_error_in_the_requests_comes_out_and_leaves_no_thread(noise):
    def failing():
        yield from requests(noise, 2)
        raise KeyError("order")

    before = set(threading.enumerate())
    with pytest.raises(KeyError):
        list(FFCVDecoder(noise, 2, False).decode(failing()))
    assert set(threading.enumerate()) == before


def test_a_box_outside_of_its_image_never_reaches_native_code(noise):
    for box in ([5, 0, 8, 8], [0, 5, 8, 8], [-1, 0, 8, 8], [0, 0, 0, 8]):
        with pytest.raises(ValueError, match="a box lies outside"):
            decoded(noise, np.array([box], np.int32), (4, 4))


def broken(images: StoredImages, i: int) -> StoredImages:
    """Image `i` without its middle, after the file was opened."""
    with Path(images.paths[0]).open("r+b") as file:
        file.seek(int(images.offsets[i]) + 300)
        file.write(bytes(int(images.lengths[i]) - 302))
    return images


def test_a_jpeg_that_cannot_be_decoded_is_named(jpegs):
    with pytest.raises(WorkError) as error:
        decoded(broken(replace(jpegs, crc32=None), 4), whole_boxes(jpegs.sizes), (12, 12))
    assert "train image 4 of jpegs.beton cannot be decoded" in one_line(error)


def test_a_bit_that_changed_after_the_file_was_checked_is_named(jpegs):
    at = int(jpegs.offsets[4] + jpegs.lengths[4] // 2)
    with Path(jpegs.paths[0]).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(WorkError, match=r"^train image 4 of jpegs\.beton has changed since it was written"):
        decoded(jpegs, whole_boxes(jpegs.sizes), (12, 12))
    for read in (jpegs.read, jpegs.file):
        with pytest.raises(WorkError, match=r"^train image 4 of jpegs\.beton has changed"):
            read(4)
    assert jpegs.take(np.array([3, 5])).read(0) == jpegs.read(3)


def test_what_neither_ffcv_nor_pillow_decodes_is_named_though_its_checksum_holds(jpegs):
    broken(jpegs, 4)
    forged = [zlib.crc32(replace(jpegs, crc32=None).read(i)) for i in range(len(jpegs))]
    with pytest.raises(WorkError, match=r"^train image 4 of jpegs.beton cannot be decoded \(.*\): build .* again$"):
        decoded(replace(jpegs, crc32=np.array(forged)), whole_boxes(jpegs.sizes), (12, 12))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 3 * 31 * 33, 1 << 15])
def test_native_checksums_are_zlibs(tmp_path, length):
    content = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8)
    content.tofile(tmp_path / "file")
    ones = np.ones(1, np.int64)
    for crc32, wanted in ((zlib.crc32(content), 0), (zlib.crc32(content) ^ 1, ffcv_native.CHANGED)):
        status = np.zeros(1, np.int64)
        # One pixel of an image of one pixel, with more behind it: only the checksum sees all.
        stored = ffcv_native.Stored(ones * 0, ones * length, ones * crc32, ones > 0, np.ones((1, 2), np.int64))
        box, out = np.array([[0, 0, 1, 1]]), np.zeros((1, 1, 1, 3), np.uint8)
        scratch = np.empty(max(length, 3), np.uint8)
        with (tmp_path / "file").open("rb") as file:
            ffcv_native.compile_rows()(file.fileno(), stored, box, out, (scratch, scratch), status, ones * 0)
        assert status[0] == wanted


def test_a_file_that_comes_in_pieces_is_read_whole(tmp_path):
    from numba import njit

    native = ffcv_native.load()["pread"]
    in_pieces = ctypes.CFUNCTYPE(native.restype, *native.argtypes)
    pread = in_pieces(lambda file, to, count, at: native(file, to, min(count, 7), at))
    (tmp_path / "file").write_bytes(bytes(range(50)))
    content, has_read = np.zeros(60, np.uint8), ffcv_native._compiled_reading(njit, {"pread": pread})
    with (tmp_path / "file").open("rb") as file:
        assert has_read(file.fileno(), content, 40, 10) and not has_read(file.fileno(), content[40:], 20, 40)
    assert content[:50].tolist() == [*range(10, 50), *range(40, 50)]


def test_a_jpeg_that_only_ffcv_rejects_is_decoded_by_pil(photos, tmp_path):
    """libjpeg warns of bytes before a marker, and its picture is whole; many published JPEGs are so."""
    path = photos / "train/cat/1.jpg"
    path.write_bytes(path.read_bytes()[:-2] + b"\x00\x01\x02\xff\xd9")
    images = reopened(built(folder_contents(photos), tmp_path / "set.beton", mode="jpeg")).train
    assert images.read(1) == path.read_bytes()
    out = decoded(images, whole_boxes(images.sizes), (12, 12))
    assert np.array_equal(out[1], np.asarray(Image.open(path)))
    with pytest.raises(WorkError, match="train image 1 of set"):
        decoded(replace(images, crc32=None), whole_boxes(images.sizes), (12, 12))


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_crash(noise):
    decoder = FFCVDecoder(noise, 2, False)
    os.truncate(noise.paths[0], int(noise.offsets[20]))
    with pytest.raises(WorkError) as error:
        list(decoder.decode(requests(noise, 40)))
    assert "train image 20 of noise.beton" in one_line(error)
    decoder.close()


@pytest.mark.timeout(60)
def test_a_hung_worker_becomes_an_error(noise, monkeypatch):
    monkeypatch.setattr(ffcv, "STALL_S", 0.5)
    released, others = threading.Event(), set(threading.enumerate())
    decoder = FFCVDecoder(noise, 2, False)
    rows, calls = decoder.rows, []

    def hang(*arguments):
        calls.append(1)
        if len(calls) > 20:
            released.wait(60)
        rows(*arguments)

    decoder.rows = hang
    with pytest.raises(WorkError) as error:
        list(decoder.decode(requests(noise, 1000)))
    assert "no image was decoded" in one_line(error)
    released.set()
    for thread in set(threading.enumerate()) - others:
        thread.join(60)
        assert not thread.is_alive()


def test_a_worker_that_fails_is_an_error(noise, monkeypatch):
    decoder = FFCVDecoder(noise, 2, False)

    def fail(*arguments):
        raise MemoryError("no memory")

    decoder.rows = fail
    before = threading.active_count()
    with pytest.raises(MemoryError):
        list(decoder.decode(requests(noise, 10)))
    assert threading.active_count() == before


def test_torchs_threads_are_left_alone_and_ffcv_is_not_imported():
    script = """if True:
        import sys, torch
        torch.set_num_threads(3)
        from fastarat.data.loading.decoders import ffcv_native
        ffcv_native.compile_rows()
        assert torch.get_num_threads() == 3 and "ffcv" not in sys.modules and "cv2" not in sys.modules
        print("left alone")
    """
    root = Path(__file__).parents[3]
    # The compilation itself, which takes seconds, is that of every other test here.
    environment = {**os.environ, **UNMEASURED, "NUMBA_DISABLE_JIT": "1"}
    environment["PYTHONPATH"] = f"{root}:{root / 'kernels'}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout == "left alone\n", done.stderr


def test_a_numba_that_cannot_be_imported_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UserError) as error:
        ffcv_native.compile_rows.__wrapped__()
    assert "FFCV needs numba, which cannot be imported" in one_line(error)


@pytest.mark.parametrize(
    ("where", "what", "message"),
    [
        ("util.find_spec", lambda name: None, "pip install 'fastarat[ffcv]'"),
        ("metadata.version", lambda name: "2.1", "needs FFCV 1.0.x, and 2.1 is here"),
        ("Path.glob", lambda self, pattern: [], "install FFCV again"),
    ],
)
def test_an_ffcv_that_is_missing_or_another_is_one_line(monkeypatch, where, what, message):
    name, attribute = where.split(".")
    monkeypatch.setattr(getattr(ffcv_native, name), attribute, what)
    with pytest.raises(UserError) as error:
        ffcv_native.load()
    assert message in one_line(error)
