"""The plain decoder: PIL in worker processes, whose failures are one line and who never outlive their work."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fastarat.common.errors import WorkError
from fastarat.data.images.decoding import pixels_of
from fastarat.data.loading.decoders import plain
from fastarat.data.loading.decoders.decoder import Request
from fastarat.data.loading.decoders.plain import PlainDecoder
from fastarat.data.loading.sampling import central_boxes, whole_boxes
from tests.helpers.small_sets import encoded, jpeg, one_line


def images_in(folder: Path, count: int = 12):
    """JPEGs and PNGs of three shapes."""
    shapes = [(40, 30), (30, 40), (64, 64)]
    kinds = ("JPEG", "PNG")
    return encoded(
        folder, {f"{i}.{kinds[i % 2].lower()}": jpeg(i, *shapes[i % 3], kind=kinds[i % 2]) for i in range(count)}
    )


def requests(images, batch: int = 4, size: int = 16) -> list[Request]:
    index = np.arange(len(images))
    parts = np.array_split(index, len(images) // batch)
    return [Request(part, central_boxes(images.sizes[part], 1.0), (size, size)) for part in parts]


def children() -> set[int]:
    """Living child processes of this one."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


@pytest.fixture
def images(tmp_path):
    return images_in(tmp_path / "images")


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_hold_what_pil_gives_image_by_image_in_order(images, workers):
    decoder = PlainDecoder(images, workers)
    asked = requests(images)
    try:
        for request, batch in zip(asked, decoder.decode(iter(asked)), strict=True):
            assert batch.shape == (4, 16, 16, 3) and batch.dtype == torch.uint8
            for i, box, pixels in zip(request.index, request.boxes, batch, strict=True):
                assert np.array_equal(pixels.numpy(), pixels_of(images.file(i), box, request.size))
    finally:
        decoder.close()


def test_an_image_of_the_wanted_size_keeps_its_pixels(tmp_path):
    images = encoded(tmp_path / "png", {f"{i}.png": jpeg(i, 9, 7, kind="PNG") for i in range(4)})
    decoder = PlainDecoder(images, 1)
    (batch,) = decoder.decode(iter([Request(np.arange(4), whole_boxes(images.sizes), (9, 7))]))
    decoder.close()
    noise = np.stack([np.random.default_rng(i).integers(0, 256, (7, 9, 3), dtype=np.uint8) for i in range(4)])
    assert np.array_equal(batch.numpy(), noise)


def test_workers_live_from_one_pass_to_the_next_and_end_with_the_decoder(images, monkeypatch):
    monkeypatch.setattr(plain, "_POLL_S", 30.0)  # a busy machine's workers do not answer at once
    before, decoder = children(), PlainDecoder(images, 2)
    first = list(decoder.decode(iter(requests(images))))
    workers = children() - before
    again = list(decoder.decode(iter(requests(images))))
    assert len(workers) == 2 and children() - before == workers
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    decoder.close()
    assert children() == before


@pytest.mark.timeout(60)
def test_a_killed_worker_is_one_line(images, monkeypatch):
    monkeypatch.setattr(plain, "_POLL_S", 0.1)
    decoder = PlainDecoder(images, 1)
    decoded = decoder.decode(iter(requests(images) * 50))
    next(decoded)
    os.kill(decoder.loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(WorkError) as error:
        list(decoded)
    assert "has died: killed, or out of memory" in one_line(error)
    decoder.close()


def test_a_worker_that_hangs_is_one_line_and_one_that_goes_on_is_seen_image_by_image(images, monkeypatch):
    monkeypatch.setattr(plain, "_POLL_S", 0.1)
    before, decoder = children(), PlainDecoder(images, 1)
    decoded = decoder.decode(iter(requests(images) * 50))
    next(decoded)
    monkeypatch.setattr(plain, "STALL_S", 0.5)
    os.kill(decoder.loader._iterator._workers[0].pid, signal.SIGSTOP)
    with pytest.raises(WorkError) as error:
        list(decoded)
    assert "hangs" in one_line(error)
    decoder.close()
    assert children() == before

    patient, begun = PlainDecoder(images, 1), []

    def counted(*arguments):
        assert patient.decoding.num_decoded() == len(begun)
        begun.append(True)
        return pixels_of(*arguments)

    monkeypatch.setattr(plain, "pixels_of", counted)
    (batch,) = patient.decode(iter(requests(images)[:1]))
    assert batch.shape[0] == 4
    patient.close()


def test_stopping_early_leaves_no_process_and_the_next_pass_starts_from_its_own_beginning(images):
    before, decoder = children(), PlainDecoder(images, 2)
    whole = list(decoder.decode(iter(requests(images))))
    stopped = decoder.decode(iter(requests(images)[1:]))
    next(stopped)
    stopped.close()
    assert children() == before
    assert all(torch.equal(a, b) for a, b in zip(whole, decoder.decode(iter(requests(images))), strict=True))
    decoder.close()


def test_work_that_cannot_even_be_listed_leaves_no_process(images):
    def failing():
        yield requests(images)[0]
        raise ValueError("no second request")

    before, decoder = children(), PlainDecoder(images, 2)
    with pytest.raises(ValueError, match="no second request") as error:
        list(decoder.decode(failing()))
    assert children() == before and error.tb  # whose frames hold what PyTorch had started
    decoder.close()


def test_too_little_shared_memory_is_one_line(images, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(WorkError) as error:
        list(PlainDecoder(images, 2).decode(iter(requests(images))))
    assert "5 batches" in one_line(error) and "--shm-size" in str(error.value)


def test_it_leaves_the_random_numbers_of_others_alone(images):
    state, decoder = torch.get_rng_state(), PlainDecoder(images, 1)
    list(decoder.decode(iter(requests(images))))
    assert torch.equal(torch.get_rng_state(), state)
    decoder.close()


@pytest.mark.parametrize("damage", ["gone", "short", "noise", "smaller"])
def test_an_image_that_has_changed_since_it_was_checked_is_named(images, damage):
    path = Path(images.paths[5])
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:40])
    elif damage == "smaller":
        path.write_bytes(jpeg(5, 20, 20).ljust(len(path.read_bytes()), b"\0"))
    else:
        path.write_bytes(b"\0" * len(path.read_bytes()))
    decoder = PlainDecoder(images, 2)
    with pytest.raises(WorkError) as error:
        list(decoder.decode(iter(requests(images))))
    assert "5.png" in one_line(error)
    decoder.close()
