"""The resident loader: the n-th batch of an epoch is the same for every process and after every resume."""

import numpy as np
import pytest
import torch

from fastarat.config.data import AugmentConfig
from fastarat.data.images.dataset import Images
from fastarat.data.loading.resident import ResidentLoader
from fastarat.data.loading.sampling import Sampling
from fastarat.data.open import open_dataset
from tests.helpers.loading import same

NUM_IMAGES, BATCH = 53, 12
CPU = torch.device("cpu")


def image_set() -> Images:
    """Images that can be told apart: the label is the image's number."""
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 5, 5, 3), dtype=np.uint8)
    return Images(images, np.arange(NUM_IMAGES, dtype=np.int64))


def loader(rank: int = 0, num_processes: int = 1, seed: int = 0, padding: int = 2) -> ResidentLoader:
    augment = AugmentConfig(padding, padding > 0)
    sampling = Sampling(BATCH, seed, augment, rank=rank, num_processes=num_processes)
    return ResidentLoader(image_set(), 255, sampling, device=CPU, dtype=torch.float32)


def test_an_epoch_holds_each_image_at_most_once_and_drops_the_last_batch():
    batches = list(loader().batches(1))
    assert len(batches) == loader().steps_per_epoch == NUM_IMAGES // BATCH
    seen = torch.cat([batch.y for batch in batches]).tolist()
    assert len(seen) == len(set(seen)) == 48
    assert all(batch.x.shape == (BATCH, 3, 5, 5) and batch.x.dtype == torch.float32 for batch in batches)


def test_labels_stay_with_their_images():
    images = image_set().images
    for batch in loader(padding=0).batches(1):
        expected = torch.from_numpy(images[batch.y.numpy()]).permute(0, 3, 1, 2) / 255
        assert torch.equal(batch.x, expected)


@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_the_shares_of_several_processes_make_up_the_batch_of_one(num_processes):
    shares = [loader(rank, num_processes).batches(4) for rank in range(num_processes)]
    for whole, *parts in zip(loader().batches(4), *shares, strict=True):
        assert same(whole, [torch.cat(tensors) for tensors in zip(*parts, strict=True)])
        assert torch.cat([part.rows for part in parts]).tolist() == list(range(BATCH))
        assert {len(part.y) for part in parts} == {BATCH // num_processes}


def test_an_epoch_that_is_resumed_goes_on_with_the_same_batches():
    rest = list(loader().batches(2))[2:]
    resumed = list(loader().batches(2, first_step=2))
    assert len(resumed) == len(rest) and all(map(same, resumed, rest))


def test_order_and_augmentation_change_with_epoch_and_seed():
    first = next(loader().batches(1))
    assert same(first, next(loader().batches(1)))
    for other in (next(loader().batches(2)), next(loader(seed=1).batches(1))):
        assert not torch.equal(first.y, other.y)


@pytest.mark.parametrize("num_processes", [1, 2, 5])
@pytest.mark.parametrize("num_images", [1, 12, 30, NUM_IMAGES])
def test_a_sample_holds_so_many_different_images_over_all_processes(num_images, num_processes):
    shares = [
        list(loader(rank, num_processes).sample(1, num_images, augment=False, batch=BATCH))
        for rank in range(num_processes)
    ]
    seen = [int(y) for share in shares for batch in share for y in batch.y]
    assert len(seen) == len(set(seen)) == num_images
    whole = [int(y) for batch in loader().sample(1, num_images, augment=False, batch=BATCH) for y in batch.y]
    assert sorted(seen) == sorted(whole)


def test_a_sample_is_the_same_by_batches_of_any_size():
    whole = next(loader().sample(1, 30, augment=True, batch=30))
    parts = list(loader().sample(1, 30, augment=True, batch=8))
    assert [len(part.y) for part in parts] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert torch.equal(torch.cat([part.y for part in parts]), whole.y)


def test_a_sample_changes_with_the_epoch_and_is_augmented_only_when_asked():
    images = image_set().images

    def sampled(epoch, augment):
        return next(loader().sample(epoch, BATCH, augment=augment, batch=BATCH))

    plain, moved = sampled(1, False), sampled(1, True)
    assert torch.equal(plain.x, torch.from_numpy(images[plain.y.numpy()]).permute(0, 3, 1, 2) / 255)
    assert torch.equal(moved.y, plain.y) and not torch.equal(moved.x, plain.x)
    assert not torch.equal(sampled(2, False).y, plain.y)


def test_digits_are_scaled_by_their_largest_value_16():
    digits = open_dataset("digits")
    sampling = Sampling(64, 0, AugmentConfig(0, False))
    small = ResidentLoader(digits.train, digits.max_value, sampling, device=CPU, dtype=torch.float64)
    batch = next(small.batches(1))
    assert batch.x.shape == (64, 1, 8, 8)
    assert batch.x.min() == 0 and batch.x.max() == 1
    assert torch.equal(batch.x * 16, (batch.x * 16).round())
