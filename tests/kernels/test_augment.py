"""Crops and flips on the device against a plain loop over images, and how they are distributed."""

import math

import numpy as np
import pytest
import torch
from fastarat_kernels import philox
from fastarat_kernels.augment.gather import gather
from fastarat_kernels.augment.twin import augment

from fastarat.config.data import AugmentConfig

SEED, EPOCH = 3, 5


def pixels(n: int = 12, height: int = 6, width: int = 7, channels: int = 3) -> torch.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    return torch.from_numpy(values)


def augmented(images, index, max_value, dtype, settings, seed=SEED, epoch=EPOCH) -> torch.Tensor:
    return augment(images, index, epoch, max_value, dtype, settings.crop_padding, settings.flip, seed)


def one_by_one(images: np.ndarray, index: list[int], settings: AugmentConfig, max_value: int) -> np.ndarray:
    """Pad, cut out and mirror image by image, by the draws that `augment` makes."""
    padding, (height, width) = settings.crop_padding, images.shape[1:3]
    words = philox.words(SEED, philox.Stream.AUGMENTATION, EPOCH, torch.tensor(index), 3).numpy()
    out = []
    for i, (down, right, mirror) in zip(index, words, strict=True):
        padded = np.pad(images[i], ((padding, padding), (padding, padding), (0, 0)))
        top, left = down % (2 * padding + 1), right % (2 * padding + 1)
        crop = padded[top : top + height, left : left + width]
        if settings.flip and mirror & 1:
            crop = crop[:, ::-1]
        out.append(crop.transpose(2, 0, 1) / max_value)
    return np.stack(out)


@pytest.mark.parametrize("settings", [AugmentConfig(), AugmentConfig(2, False), AugmentConfig(0, True)])
@pytest.mark.parametrize("max_value", [255, 16])
def test_crops_and_flips_are_those_of_a_loop_over_images(settings, max_value):
    images, index = pixels(), [7, 0, 11, 3, 3]
    ours = augmented(images, torch.tensor(index), max_value, torch.float64, settings, SEED, EPOCH)
    np.testing.assert_array_equal(ours.numpy(), one_by_one(images.numpy(), index, settings, max_value))


def test_without_crop_and_flip_the_images_are_as_they_are():
    images, index = pixels(), torch.tensor([4, 2])
    plain = gather(images, index, 255, torch.float32)
    assert torch.equal(augmented(images, index, 255, torch.float32, AugmentConfig(0, False)), plain)
    assert plain.shape == (2, 3, 6, 7)
    assert torch.equal(plain[1, 2], images[2, :, :, 2] / 255)


def test_an_image_is_treated_the_same_in_any_batch_and_otherwise_in_another_epoch():
    images, settings = pixels(), AugmentConfig()

    def batch(index, seed=SEED, epoch=EPOCH):
        return augmented(images, torch.tensor(index), 255, torch.float32, settings, seed, epoch)

    assert torch.equal(batch([1, 5, 9])[1], batch([5])[0])
    assert not torch.equal(batch(range(12)), batch(range(12), epoch=EPOCH + 1))
    assert not torch.equal(batch(range(12)), batch(range(12), seed=SEED + 1))


def test_every_offset_and_both_sides_are_equally_likely():
    # One bright pixel in the middle of a black image shows the offset; a second one beside it the flip.
    n, padding = 8100, 4
    image = torch.zeros(1, 11, 11, 1, dtype=torch.uint8)
    image[0, 5, 5], image[0, 5, 6] = 100, 200
    out = augmented(image.expand(n, -1, -1, -1), torch.arange(n), 255, torch.float32, AugmentConfig())
    place = (out == 100 / 255).flatten(1).int().argmax(1)
    second = (out == 200 / 255).flatten(1).int().argmax(1)
    flipped = second < place
    row, column = place // 11 - 5, place % 11 - 5
    assert row.abs().max() == padding and column.abs().max() == padding
    counts = torch.bincount((row + padding) * 9 + column + padding, minlength=81)
    # 100 expected in each of 81 places: chi-squared of 80 degrees of freedom, mean 80, five deviations of sqrt(160).
    assert ((counts - 100).square() / 100).sum() < 80 + 5 * math.sqrt(160)
    assert abs(int(flipped.sum()) - n / 2) < 5 * math.sqrt(n / 4)
    # A flip says nothing about the offset it came with.
    assert abs(row[flipped].double().mean()) < 5 * math.sqrt(20 / 3 / (n / 2))
