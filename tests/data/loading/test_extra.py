"""Extra images have their share of every batch; each comes once before any comes again, also after a resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastarat.common.errors import UserError
from fastarat.config import Config
from fastarat.config.data import AugmentConfig, ExtraConfig
from fastarat.data.formats.prepared import write
from fastarat.data.images.dataset import Images, from_splits
from fastarat.data.loading.extra import Mixture, open_extra
from fastarat.data.loading.resident import ResidentLoader
from fastarat.data.loading.sampling import Sampling
from fastarat.data.open import open_dataset

OWN, EXTRA, BATCH = 53, 31, 12
CPU = torch.device("cpu")


def image_set(num: int, first: int) -> Images:
    """Images that can be told apart: the label is the image's number."""
    images = np.random.default_rng(first).integers(0, 256, (num, 5, 5, 3), dtype=np.uint8)
    return Images(images, np.arange(first, first + num, dtype=np.int64))


def loader(rank: int = 0, num_processes: int = 1, ratio: float = 0.7, extra: int = EXTRA, seed: int = 0):
    sampling = Sampling(BATCH, seed, AugmentConfig(1, True), rank=rank, num_processes=num_processes)
    return resident(sampling, extra=image_set(extra, OWN), ratio=ratio)


def resident(sampling: Sampling, **extra) -> ResidentLoader:
    return ResidentLoader(image_set(OWN, 0), 255, sampling, device=CPU, dtype=torch.float32, **extra)


def labels(loader: ResidentLoader, epoch: int, first_step: int = 0) -> list[list[int]]:
    return [batch.y.tolist() for batch in loader.batches(epoch, first_step)]


@pytest.mark.parametrize(("ratio", "num_extra"), [(0.1, 1), (0.5, 6), (0.7, 8), (0.9, 11)])
def test_every_batch_has_the_same_number_of_extra_images_and_an_epoch_is_as_long_as_without(ratio, num_extra):
    mixed = loader(ratio=ratio)
    assert mixed.num_images == OWN and mixed.steps_per_epoch == OWN // BATCH
    for epoch in (1, 2, 7):
        batches = labels(mixed, epoch)
        assert len(batches) == OWN // BATCH
        assert all(sum(y >= OWN for y in batch) == num_extra for batch in batches)
        own = [y for batch in batches for y in batch if y < OWN]
        assert len(own) == len(set(own)), "a training image comes once an epoch at most"


@pytest.mark.parametrize("extra", [8, 9, EXTRA, 200])
def test_each_extra_image_is_used_once_before_any_is_used_again(extra):
    mixed = loader(extra=extra)
    used = [y - OWN for epoch in range(1, 12) for batch in labels(mixed, epoch) for y in batch if y >= OWN]
    assert len(used) == 11 * 4 * 8
    passes = [used[first : first + extra] for first in range(0, len(used), extra)]
    assert all(len(set(one)) == len(one) for one in passes)
    assert extra > len(used) or passes[0] != passes[1], "every pass has an order of its own"


@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_processes_share_batches_and_extra_images_evenly(num_processes):
    shares = [list(loader(rank, num_processes).batches(3)) for rank in range(num_processes)]
    for whole, *parts in zip(loader().batches(3), *shares, strict=True):
        assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
        assert torch.equal(whole.y, torch.cat([part.y for part in parts]))
        counts = [int((part.y >= OWN).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_an_epoch_that_is_resumed_goes_on_with_the_same_batches():
    whole, resumed = list(loader().batches(5))[2:], list(loader().batches(5, first_step=2))
    assert len(whole) == len(resumed) == 2
    for ours, theirs in zip(whole, resumed, strict=True):
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.y, theirs.y)


def test_order_changes_with_epoch_and_seed():
    assert labels(loader(), 1) == labels(loader(), 1)
    assert labels(loader(), 1) != labels(loader(), 2) and labels(loader(), 1) != labels(loader(seed=1), 1)


def test_images_keep_their_labels_and_get_the_same_augmentation():
    plain = resident(Sampling(BATCH, 0, AugmentConfig(1, True)))
    alone = {int(y): x for batch in plain.batches(2) for x, y in zip(batch.x, batch.y, strict=True)}
    found = {int(y): x for batch in loader().batches(2) for x, y in zip(batch.x, batch.y, strict=True)}
    both = set(alone) & set(found)
    assert len(both) > 8 and all(torch.equal(alone[y], found[y]) for y in both)
    plainly = resident(Sampling(BATCH, 0, AugmentConfig(0, False)), extra=image_set(EXTRA, OWN))
    images = np.concatenate([image_set(OWN, 0).images, image_set(EXTRA, OWN).images])
    for batch in plainly.batches(1):
        assert torch.equal(batch.x, torch.from_numpy(images[batch.y.numpy()]).permute(0, 3, 1, 2) / 255)


def test_samples_are_of_the_training_images_alone():
    seen = torch.cat([batch.y for batch in loader().sample(1, OWN, augment=True, batch=10)])
    assert sorted(seen.tolist()) == list(range(OWN))


@pytest.mark.parametrize(
    ("ratio", "num_images", "says"),
    [
        (0.01, EXTRA, r"ratio 0.01 makes 0 of a batch of 12 images extra: give another --extra.ratio"),
        (0.99, EXTRA, "makes 12 of a batch of 12"),
        (0.5, 5, "6 extra images in a batch are more than the 5 there are: give a smaller --extra.ratio"),
    ],
)
def test_a_share_that_cannot_be_is_refused(ratio, num_images, says):
    with pytest.raises(UserError, match=says):
        Mixture(OWN, num_images, Sampling(BATCH, 0), ratio=ratio)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan")])
def test_a_ratio_outside_0_to_1_is_a_problem_of_the_settings(ratio):
    problems = replace(Config(), extra=ExtraConfig("cifar10", ratio)).problems()
    assert len(problems) == 1 and "extra ratio" in problems[0] and "(0, 1)" in problems[0]


def test_a_ratio_of_no_extra_images_is_a_problem_of_the_settings():
    (problem,) = replace(Config(), extra=ExtraConfig(ratio=0.3)).problems()
    assert "give --extra.data too" in problem and Config().problems() == []


def test_an_extra_set_must_have_the_same_classes_and_images(tmp_path):
    digits = open_dataset("digits")
    assert open_extra(ExtraConfig(), digits) is None

    def opened(name: str, images: np.ndarray, classes: tuple[str, ...], max_value: int = 16):
        part = Images(images, np.zeros(len(images), np.int64))
        write(from_splits(name, part, part, classes, max_value), tmp_path / name, "test")
        return open_extra(ExtraConfig(str(tmp_path / name)), digits)

    own = digits.train.images[:20]
    assert len(opened("fits", own, digits.classes).train.labels) == 20
    with pytest.raises(
        UserError, match=r"animals has other classes than digits: 2 and not 10 \(cat, dog; 0, 1, 2, …\)"
    ):
        opened("animals", own, ("cat", "dog"))
    with pytest.raises(UserError, match=r"are 7x8x1 of 0 … 16, those of digits 8x8x1 of 0 … 16"):
        opened("narrow", np.ascontiguousarray(own[:, :, :7]), digits.classes)
    with pytest.raises(UserError, match=r"of 0 … 255, those of digits 8x8x1 of 0 … 16"):
        opened("bright", own, digits.classes, 255)
