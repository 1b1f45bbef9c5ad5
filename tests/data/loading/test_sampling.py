"""Order and crops of an epoch: how they are distributed, and that they depend on seed and epoch alone."""

from dataclasses import replace

import numpy as np
import torch
from fastarat_kernels import philox

from fastarat.data.loading import sampling as order
from fastarat.data.loading.sampling import (
    central_boxes,
    quasi_random_order,
    random_boxes,
    whole_boxes,
)
from tests.helpers.small_sets import encoded, jpeg

SCALE = (0.08, 1.0)


def many(tmp_path, monkeypatch, count: int = 4000):
    """Images of a kilobyte each, one after the other in one file, as far as anyone asks before reading."""
    monkeypatch.setattr(order, "BLOCK_BYTES", 10 * 1000)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 8)
    one = encoded(tmp_path, {"a.jpg": jpeg(0)}).take(np.zeros(count, np.int64))
    shuffled = np.random.default_rng(0).permutation(count)  # the set's order is not the file's
    return replace(one, offsets=1000 * shuffled, lengths=np.full(count, 1000))


def test_each_image_comes_once(tmp_path, monkeypatch):
    found = quasi_random_order(many(tmp_path, monkeypatch), 0, 1)
    assert sorted(found.tolist()) == list(range(4000))


def test_a_window_of_images_is_read_from_few_blocks_which_are_far_apart(tmp_path, monkeypatch):
    images = many(tmp_path, monkeypatch)
    blocks = images.offsets[quasi_random_order(images, 0, 1).numpy()] // 10_000
    windows = blocks.reshape(-1, 80)
    assert all(len(set(window)) == 8 for window in windows.tolist())
    assert all(max(window) - min(window) > 8 for window in windows.tolist())
    # Within a window the blocks are mixed: no image follows its neighbour more often than by chance (1 in 8).
    assert (windows[:, 1:] == windows[:, :-1]).mean() < 0.2
    everywhere = images.offsets[philox.permutation(0, 1, 4000).numpy()] // 10_000
    assert len(set(everywhere[:80].tolist())) > 60


def test_the_order_depends_on_seed_and_epoch_alone(tmp_path, monkeypatch):
    images = many(tmp_path, monkeypatch)
    first = quasi_random_order(images, 0, 1)
    assert torch.equal(first, quasi_random_order(images, 0, 1))
    assert not torch.equal(first, quasi_random_order(images, 0, 2))
    assert not torch.equal(first, quasi_random_order(images, 1, 1))


def sizes_of(count: int, *size: int) -> np.ndarray:
    return np.tile(np.array(size, np.int32), (count, 1))


def boxes(sizes: np.ndarray, seed: int = 0, epoch: int = 1, scale=SCALE) -> np.ndarray:
    return random_boxes(sizes, np.arange(len(sizes)), scale, seed=seed, epoch=epoch)


def test_every_box_lies_in_its_image_however_odd_that_is():
    sizes = np.array([[500, 375], [1, 1], [10, 2000], [2000, 10], [3, 2], [65535, 65535]] * 500, np.int32)
    found = boxes(sizes)
    assert found.dtype == np.int32
    assert (found[:, :2] >= 0).all() and (found[:, 2:] >= 1).all()
    assert (found[:, :2] + found[:, 2:] <= sizes).all()


def test_area_shape_and_place_are_uniform():
    side, count = 1000, 20_000
    found = boxes(sizes_of(count, side, side)).astype(float)
    area = found[:, 2] * found[:, 3] / side**2
    # Of a square image nearly all first draws fit but the largest; five standard errors of a uniform's mean.
    error = 5 / np.sqrt(12 * count)
    inside = area < 0.5
    assert abs((area[inside] - 0.08).mean() / 0.42 - 0.5) < error / np.sqrt(inside.mean())
    aspect = np.log(found[:, 2] / found[:, 3])[inside] / np.log(4 / 3)
    assert aspect.min() >= -1.02 and aspect.max() <= 1.02  # whole pixels shift a shape by a percent
    assert abs(aspect.mean()) < 2 * error / np.sqrt(inside.mean())
    for axis in range(2):
        room = side - found[inside, 2 + axis]
        place = (found[inside, axis] + 0.5) / (room + 1)
        counts, _ = np.histogram(place, bins=10, range=(0, 1))
        expected = inside.sum() / 10
        assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_equal_seeds_give_equal_boxes_and_another_seed_epoch_or_image_others():
    sizes = sizes_of(64, 300, 200)
    first = boxes(sizes)
    assert np.array_equal(first, boxes(sizes))
    assert not np.array_equal(first, boxes(sizes, seed=1)) and not np.array_equal(first, boxes(sizes, epoch=2))
    assert len(np.unique(first, axis=0)) > 60
    some = np.array([40, 3])
    assert np.array_equal(random_boxes(sizes[some], some, SCALE, seed=0, epoch=1), first[some])


def test_an_image_that_no_draw_fits_shows_its_largest_part_of_a_fitting_shape():
    found = boxes(sizes_of(1, 10, 2000))
    assert found.tolist() == [[0, 993, 10, 13]]
    assert boxes(sizes_of(1, 2000, 9)).tolist() == [[994, 0, 12, 9]]


def test_the_fixed_views():
    assert central_boxes(sizes_of(1, 256, 512), 0.875).tolist() == [[16, 144, 224, 224]]
    assert central_boxes(sizes_of(1, 1, 1), 0.875).tolist() == [[0, 0, 1, 1]]
    assert whole_boxes(sizes_of(1, 30, 20)).tolist() == [[0, 0, 30, 20]]
