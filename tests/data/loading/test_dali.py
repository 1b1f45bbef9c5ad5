"""DALI gives PIL's pixels for whatever a request asks, names what it cannot decode, and leaves nothing behind."""

import io
import os
import sys
import tarfile
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastarat.common.errors import UserError, WorkError
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders import dali
from fastarat.data.loading.decoders.dali import DALIDecoder
from fastarat.data.loading.decoders.decoder import Request
from fastarat.data.loading.decoders.prefetch import prefetch
from tests.helpers.loading import settled, tasks
from tests.helpers.optional import needs_dali
from tests.helpers.small_sets import jpeg, one_line, pixels, png_of_16_bits

pytestmark = needs_dali


def encoded(folder: Path, contents: list[bytes], sizes: list[tuple[int, int]] | None = None) -> StoredImages:
    """A set of these files; `sizes` where PIL cannot tell them."""
    folder.mkdir(exist_ok=True)
    paths = tuple(str(folder / f"{i}") for i in range(len(contents)))
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    n = len(contents)
    return StoredImages(
        paths,
        np.arange(n, dtype=np.int32),
        np.zeros(n, np.int64),
        np.array(list(map(len, contents))),
        np.zeros(n, bool),
        np.array(sizes or [Image.open(io.BytesIO(content)).size for content in contents], np.int32),
        np.arange(n),
        tuple(Path(path).name for path in paths),
    )


def whole(images: StoredImages, index: Sequence[int], size: tuple[int, int]) -> Request:
    """All of each image."""
    sizes = images.sizes[np.array(index, np.int64)]
    return Request(np.array(index, np.int64), np.concatenate([np.zeros_like(sizes), sizes], 1), size)


def decoded(images: StoredImages, requests: list[Request], workers: int = 1) -> list[np.ndarray]:
    return [batch.numpy() for batch in DALIDecoder(images, workers).decode(requests)]


def noise(kind: str = "JPEG", mode: str = "RGB", seed: int = 0, size: tuple[int, int] = (17, 13)) -> bytes:
    return jpeg(seed, *size, mode=mode, kind=kind)


@pytest.fixture
def images(tmp_path) -> StoredImages:
    """Ten JPEGs of 12x12."""
    return encoded(tmp_path / "images", [jpeg(i) for i in range(10)])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> StoredImages:
    """Every fourth of the photographs of shared/data; tests of them are skipped where it is absent."""
    archive = Path(__file__).parents[3].parent / "shared" / "data" / "photos-320.tar"
    if not archive.exists():
        pytest.skip("shared/data/photos-320.tar is not here")
    with tarfile.open(archive) as tar:
        files = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda member: member.name)[::4]
        return encoded(tmp_path_factory.mktemp("photos"), [tar.extractfile(file).read() for file in files])  # type: ignore


def test_photographs_have_the_pixels_of_pil_at_their_own_size(photographs):
    requests = [whole(photographs, [i], tuple(photographs.sizes[i])) for i in range(len(photographs))]
    for i, batch in enumerate(decoded(photographs, requests)):
        assert np.array_equal(batch[0], pixels(photographs.read(i)))


def random_parts(images: StoredImages) -> np.ndarray:
    """A part of each image, of at least a third of its sides."""
    random = np.random.default_rng(0)
    extents = random.integers(images.sizes // 3, images.sizes + 1)
    return np.concatenate([random.integers(0, images.sizes - extents + 1), extents], 1).astype(np.int32)


def cut(content: bytes, box: np.ndarray) -> Image.Image:
    left, top, width, height = map(int, box)
    return Image.fromarray(pixels(content)).crop((left, top, left + width, top + height))


def test_a_part_that_has_the_wanted_size_keeps_its_pixels(photographs):
    boxes = random_parts(photographs)
    requests = [Request(np.array([i]), box[None], tuple(box[2:])) for i, box in enumerate(boxes)]
    for i, batch in enumerate(decoded(photographs, requests)):
        assert np.array_equal(batch[0], np.asarray(cut(photographs.read(i), boxes[i])))


@pytest.mark.parametrize("side", [96, 400])
def test_resized_parts_are_those_of_pil_but_for_rounding_and_the_outermost_ring(photographs, side):
    boxes = random_parts(photographs)
    (batch,) = decoded(photographs, [Request(np.arange(len(boxes)), boxes, (side, side))])
    for i, image in enumerate(batch):
        wanted = cut(photographs.read(i), boxes[i]).resize((side, side), Image.Resampling.BILINEAR)
        differences = np.abs(image.astype(int) - np.asarray(wanted))
        # Both filter one axis after the other and round in between: half a level each, doubled by the second pass.
        assert differences[2:-2, 2:-2].max() <= 2
        assert differences.mean() < 0.5


def cmyk_without_its_program() -> bytes:
    """A CMYK JPEG that does not say which of both kinds it is, as its Adobe marker would."""
    content = noise(mode="CMYK")
    marker = content.index(b"\xff\xee")
    return content[:marker] + content[marker + 16 :]


def turned() -> bytes:
    """A JPEG whose camera was held upright."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x112] = 6
    Image.fromarray(pixels(noise())).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


ODD = {
    "CMYK": noise(mode="CMYK"),
    "CMYK of the other kind": cmyk_without_its_program(),
    "grey": noise(mode="L"),
    "turned by EXIF": turned(),
    "one pixel": noise(size=(1, 1)),
    "PNG": noise("PNG"),
    "grey PNG": noise("PNG", "L"),
    "palette": noise("PNG", "P"),
    "transparent": noise("PNG", "RGBA"),
    "grey and transparent": noise("PNG", "LA"),
    "black and white": noise("PNG", "1"),
    "PNG without its end": noise("PNG")[:-8],
    "PNG of one pixel": noise("PNG", size=(1, 1)),
}


@pytest.mark.parametrize("name", ODD)
def test_every_kind_of_image_has_the_rgb_of_pil(tmp_path, name):
    images = encoded(tmp_path / "images", [ODD[name]])
    (batch,) = decoded(images, [whole(images, [0], tuple(images.sizes[0]))])
    assert np.array_equal(batch[0], pixels(ODD[name]))


def test_stored_pixels_come_as_they_are(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    images = encoded(tmp_path / "images", [value.tobytes() for value in values], [(7, 5), (7, 5)])
    images.raw[:] = True
    (batch,) = decoded(images, [Request(np.array([1, 0]), np.array([[0, 0, 7, 5], [0, 0, 7, 5]], np.int32), (7, 5))])
    assert np.array_equal(batch, values[::-1])
    (part,) = decoded(images, [Request(np.array([1]), np.array([[2, 1, 3, 4]], np.int32), (3, 4))])
    assert np.array_equal(part[0], values[1, 1:5, 2:5])


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_follow_their_requests_in_order_number_and_size(images, monkeypatch, workers):
    monkeypatch.setattr(dali, "SHARE", 2)
    expected = [pixels(images.read(i)) for i in range(10)]
    asked = [[3, 1, 4, 1, 5, 9, 2], [6], [], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]
    batches = decoded(
        images, [*(whole(images, index, (12, 12)) for index in asked), whole(images, [7, 8], (6, 20))], workers
    )
    for index, batch in zip(asked, batches, strict=False):
        assert batch.shape == (len(index), 12, 12, 3) and batch.dtype == np.uint8
        assert all(np.array_equal(image, expected[i]) for i, image in zip(index, batch, strict=True))
    assert len(batches) == 5 and batches[4].shape == (2, 20, 6, 3)


def test_large_images_are_decoded_few_at_a_time(images, monkeypatch):
    monkeypatch.setattr(dali, "PIXELS", 3 * 144)
    built = DALIDecoder(images, 2)
    assert built._most_of(whole(images, range(10), (8, 8))) == 6
    assert built._most_of(Request(np.zeros(1, np.int64), np.array([[0, 0, 9999, 9999]], np.int32), (8, 8))) == 2
    expected = decoded(images, [whole(images, range(10), (12, 12))])
    (batch,) = built.decode([whole(images, range(10), (12, 12))])
    assert np.array_equal(batch, expected[0])


def test_two_processes_decode_what_one_does(images):
    (both,) = decoded(images, [whole(images, range(10), (8, 8))])
    halves = [
        decoded(images, [whole(images, part, (8, 8))], workers)[0]
        for part, workers in ((range(5), 1), (range(5, 10), 2))
    ]
    assert np.array_equal(both, np.concatenate(halves))


def test_batches_are_never_written_to_again(images):
    batches = DALIDecoder(images, 1).decode(whole(images, [i % 10] * 4, (12, 12)) for i in range(40))
    kept = [(batch, batch.clone()) for batch in batches]
    assert len(kept) == 40 and len({batch.data_ptr() for batch, _ in kept}) == 40
    assert all(torch.equal(batch, copy) for batch, copy in kept)
    assert all(batch.is_contiguous() for batch, _ in kept)


def test_all_that_is_done_counts_as_progress(images):
    decoder = DALIDecoder(images, 1)
    assert len(list(decoder.decode(iter([whole(images, [0], (12, 12))])))) == 1
    assert decoder.num_done == 3  # an image read and decoded, a pipeline built


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_stopping_early_leaves_no_thread_and_takes_few_requests(images):
    taken = []

    def endless():
        for i in count():
            taken.append(i)
            yield whole(images, [i % 10] * 8, (12, 12))

    before, processes = tasks(), children()
    decoder = DALIDecoder(images, 2)
    for stop in (0, 1, 7):
        taken.clear()
        batches = decoder.decode(endless())
        assert len(list(islice(batches, stop))) == stop
        assert stop == 0 or tasks() > before
        batches.close()
        assert settled(before) and children() == processes
        assert len(taken) <= stop + 12
    decoder.close()


def test_nothing_is_printed_about_libraries_that_a_cpu_does_not_need(images, capfd):
    for _ in range(2):
        decoded(images, [whole(images, [0], (12, 12))])
    assert capfd.readouterr().err == ""


BROKEN = {
    "zero bytes": b"",
    "not a JPEG or PNG image": b"not an image at all" * 20,
    "truncated": noise(size=(64, 64))[:-900],
    "(12, 12) pixels, not (64, 64)": jpeg(3),
    "more than 8 bits": png_of_16_bits(2, 3),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_an_image_that_breaks_in_mid_epoch_is_named_and_a_new_decoder_works(tmp_path, reason):
    contents = [noise(seed=i, size=(64, 64)) for i in range(6)]
    contents[4] = BROKEN[reason]
    images = encoded(tmp_path / "images", contents, [(64, 64)] * 6)
    before = tasks()
    batches = DALIDecoder(images, 2).decode(
        whole(images, index, (64, 64)) for index in ([0, 1], [2, 3], [4, 5], [0, 1])
    )
    with pytest.raises(WorkError) as error:
        for number, batch in enumerate(batches):
            assert np.array_equal(batch[0].numpy(), pixels(contents[2 * number]))
    assert "image 4 cannot be decoded" in one_line(error) and reason in one_line(error)
    assert settled(before)
    assert len(decoded(images, [whole(images, [5], (64, 64))])) == 1


def test_a_file_that_is_deleted_in_mid_epoch_is_named(images):
    before = tasks()
    batches = DALIDecoder(images, 1).decode(whole(images, [i % 10], (12, 12)) for i in count())
    next(batches)
    Path(images.paths[6]).unlink()
    with pytest.raises(WorkError) as error:
        list(islice(batches, 40))
    assert "cannot read image 6: No such file or directory" in one_line(error)
    assert settled(before)


def test_a_file_that_only_dali_refuses_is_named_too(images, monkeypatch):
    Path(images.paths[3]).write_bytes(noise("PNG", size=(12, 12))[:-8])
    images.lengths[3] = Path(images.paths[3]).stat().st_size
    monkeypatch.setattr(dali, "is_left_to_pil", lambda content: False)
    with pytest.raises(WorkError) as error:
        decoded(images, [whole(images, range(10), (12, 12))])
    assert "image 3 cannot be decoded by DALI, though by PIL" in one_line(error)


@pytest.mark.timeout(60)
def test_a_disk_that_hangs_is_an_error(images, monkeypatch):
    Path(images.paths[6]).unlink()
    os.mkfifo(images.paths[6])  # opening it waits for a writer that never comes
    monkeypatch.setattr(dali, "prefetch", lambda *args, **options: prefetch(*args, **options, stall_s=0.5))
    with pytest.raises(WorkError, match="no image was decoded"):
        decoded(images, [whole(images, [6], (12, 12))])
    os.close(os.open(images.paths[6], os.O_RDWR | os.O_NONBLOCK))  # the reading thread goes on, and ends


@pytest.mark.parametrize(("cuda", "extra"), [(None, "dali"), ("12.6", "dali12"), ("13.0", "dali")])
def test_a_missing_dali_says_how_to_get_that_of_this_cuda(images, monkeypatch, cuda, extra):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UserError) as error:
        DALIDecoder(images, 1)
    assert f"pip install 'fastarat[{extra}]'" in one_line(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_decoding_on_a_gpu_needs_one(images):
    with pytest.raises(UserError) as error:
        DALIDecoder(images, 1, gpu=torch.device("cuda"))
    assert "--loading.decode gpu needs a CUDA device" in one_line(error)
