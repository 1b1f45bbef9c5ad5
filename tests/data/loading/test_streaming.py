"""The streaming loader: the resident loader's batches where pixels are exact, and the n-th batch after every resume."""

from contextlib import closing

import numpy as np
import pytest
import torch

from fastarat.config.data import AugmentConfig
from fastarat.data.images.dataset import Images
from fastarat.data.images.decoding import pixels_of
from fastarat.data.loading import sampling
from fastarat.data.loading.decoders.decoder import Request
from fastarat.data.loading.decoders.plain import PlainDecoder
from fastarat.data.loading.resident import ResidentLoader
from fastarat.data.loading.sampling import Sampling, random_boxes
from fastarat.data.loading.streaming import StreamLoader
from tests.helpers.loading import same
from tests.helpers.small_sets import encoded, jpeg

NUM_IMAGES, BATCH = 30, 8
CPU = torch.device("cpu")
PADDED, RESIZED = AugmentConfig(2), AugmentConfig(crop="resized")


class InProcess:
    """PIL without processes: what every decoder has to give."""

    def __init__(self, images):
        self.images, self.asked = images, []

    def decode(self, requests):
        for request in requests:
            self.asked.append(request)
            parts = zip(request.index, request.boxes, strict=True)
            yield torch.from_numpy(np.stack([pixels_of(self.images.file(i), box, request.size) for i, box in parts]))

    def close(self) -> None:
        pass


@pytest.fixture
def small(tmp_path):
    """PNGs of one size, and their pixels."""
    images = encoded(tmp_path / "small", {f"{i}.png": jpeg(i, 10, 12, kind="PNG") for i in range(NUM_IMAGES)})
    pixels = [np.random.default_rng(i).integers(0, 256, (12, 10, 3), dtype=np.uint8) for i in range(NUM_IMAGES)]
    return images, Images(np.stack(pixels), np.arange(NUM_IMAGES, dtype=np.int64))


@pytest.fixture
def large(tmp_path):
    """JPEGs of two shapes."""
    shapes = [(60, 40), (50, 80)]
    return encoded(tmp_path / "large", {f"{i}.jpg": jpeg(i, *shapes[i % 2]) for i in range(NUM_IMAGES)})


def loader(images, decoder=None, augment=PADDED, size=None, seed=0, **settings):
    sampling = Sampling(BATCH, seed, augment, size_in=size if callable(size) else lambda epoch: size, **settings)
    return StreamLoader(images, decoder or InProcess(images), sampling, device=CPU, dtype=torch.float32)


def of_pixels(images: Images) -> ResidentLoader:
    return ResidentLoader(images, 255, Sampling(BATCH, 3, PADDED), device=CPU, dtype=torch.float32)


def test_its_batches_are_the_resident_loader_s_bit_by_bit(small):
    images, pixels = small
    resident = of_pixels(pixels)
    for epoch in (1, 2):
        ours = list(loader(images, seed=3).batches(epoch))
        assert len(ours) == resident.steps_per_epoch == 3
        assert all(same(mine, their) for mine, their in zip(ours, resident.batches(epoch), strict=True))
    sampled = loader(images, seed=3).sample(1, 11, augment=False, batch=4)
    assert all(
        same(mine, their) for mine, their in zip(sampled, resident.sample(1, 11, augment=False, batch=4), strict=True)
    )


def test_so_they_are_with_the_plain_decoder_s_processes(small):
    images, pixels = small
    resident = of_pixels(pixels)
    with closing(loader(images, PlainDecoder(images, 2), seed=3)) as ours:
        assert all(same(mine, their) for mine, their in zip(ours.batches(1), resident.batches(1), strict=True))


@pytest.mark.parametrize("augment", [AugmentConfig(2), RESIZED])
def test_the_n_th_batch_after_a_resume_is_the_n_th_batch(large, augment):
    whole = list(loader(large, augment=augment, size=32).batches(4))
    resumed = list(loader(large, augment=augment, size=32).batches(4, first_step=2))
    assert len(resumed) == 1 and same(whole[2], resumed[0])


def test_no_image_before_the_resume_is_decoded(large):
    decoder = InProcess(large)
    list(loader(large, decoder, size=32).batches(1, first_step=2))
    assert len(decoder.asked) == 1


@pytest.mark.parametrize("num_processes", [2, 4])
def test_the_shares_of_several_processes_make_the_batch_of_one(large, num_processes):
    alone = list(loader(large, augment=RESIZED, size=32).batches(1))
    shares = [
        list(loader(large, augment=RESIZED, size=32, rank=rank, num_processes=num_processes).batches(1))
        for rank in range(num_processes)
    ]
    for step, batch in enumerate(alone):
        parts = [share[step] for share in shares]
        assert same(batch, [torch.cat(values) for values in zip(*parts, strict=True)])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_may_have_no_image_of_a_small_batch(small, rank):
    images, _ = small
    with closing(loader(images, PlainDecoder(images, 1), rank=rank, num_processes=2)) as ours:
        shares = [batch.x.shape for batch in ours.sample(1, 5, augment=False, batch=4)]
    assert shares == [(2, 3, 12, 10), (1 - rank, 3, 12, 10)]


def test_equal_seeds_give_equal_batches_and_other_seeds_and_epochs_others(large):
    def first(**settings):
        epoch = settings.pop("epoch", 1)
        return next(iter(loader(large, augment=RESIZED, size=32, **settings).batches(epoch)))

    assert same(first(), first())
    assert not torch.equal(first().x, first(seed=1).x) and not torch.equal(first().x, first(epoch=2).x)


def test_resized_crops_are_the_boxes_of_seed_epoch_and_image_flipped_half_the_time(large):
    decoder = InProcess(large)
    batches = list(loader(large, decoder, RESIZED, 32).batches(2))
    flipped = []
    for request, batch in zip(decoder.asked, batches, strict=True):
        wanted = random_boxes(large.sizes[request.index], request.index, (0.08, 1.0), seed=0, epoch=2)
        assert np.array_equal(request.boxes, wanted)
        for i, box, x in zip(request.index, request.boxes, batch.x, strict=True):
            shown = torch.from_numpy(pixels_of(large.file(i), box, (32, 32)) / np.float32(255)).permute(2, 0, 1)
            flipped.append(torch.equal(x, shown.flip(2)))
            assert flipped[-1] or torch.equal(x, shown)
    assert 4 <= sum(flipped) <= 20  # of 24: five standard deviations


def test_without_augmentation_a_sample_shows_the_middle(large):
    decoder = InProcess(large)
    list(loader(large, decoder, RESIZED, 32).sample(1, 3, augment=False, batch=3))
    (request,) = decoder.asked
    side = np.rint(0.875 * large.sizes[request.index].min(1)).astype(int)
    assert np.array_equal(request.boxes[:, 2:], np.stack([side, side], 1))


def test_images_grow_over_the_epochs_where_that_is_asked_for(large):
    augment = AugmentConfig(crop="resized", start_size=32, growth=0.5)
    sizes = [augment.size_in(epoch, 8, 96) for epoch in range(1, 9)]
    assert sizes == [32, 32, 64, 64, 96, 96, 96, 96]
    growing = loader(large, augment=augment, size=lambda epoch: augment.size_in(epoch, 8, 96))
    assert [next(iter(growing.batches(epoch))).x.shape[-1] for epoch in (1, 3, 5)] == [32, 64, 96]
    assert AugmentConfig().size_in(1, 8, 96) == 96


def test_quasi_random_order_is_taken_where_it_is_asked_for(small, monkeypatch):
    monkeypatch.setattr(sampling, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(sampling, "WINDOW_BLOCKS", 2)
    images, _ = small
    quasi = list(loader(images, order="quasi-random").batches(1))
    assert not torch.equal(quasi[0].y, next(iter(loader(images).batches(1))).y)
    assert len(set(torch.cat([batch.y for batch in quasi]).tolist())) == 24


def test_a_loader_left_early_starts_again(large):
    with closing(loader(large, PlainDecoder(large, 2), RESIZED, 32)) as ours:
        for _ in range(3):
            stopped = ours.batches(1)
            first = next(stopped)
            stopped.close()
        assert same(first, next(iter(loader(large, augment=RESIZED, size=32).batches(1))))


def test_a_request_says_what_the_decoder_has_to_give(small):
    images, _ = small
    decoder = InProcess(images)
    list(loader(images, decoder).batches(1))
    assert all(isinstance(request, Request) and request.size == (10, 12) for request in decoder.asked)
