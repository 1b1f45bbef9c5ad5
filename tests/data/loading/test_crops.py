"""Random resized crops: where they may lie, how they are distributed, what they hang on."""

import numpy as np

from fastarat.data.loading.crops import central_boxes, random_boxes, whole_boxes

SCALE = (0.08, 1.0)


def sizes_of(count: int, *size: int) -> np.ndarray:
    return np.tile(np.array(size, np.int32), (count, 1))


def boxes(sizes: np.ndarray, seed: int = 0, epoch: int = 1, scale=SCALE) -> np.ndarray:
    return random_boxes(sizes, np.arange(len(sizes)), scale, seed, epoch)


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
    assert np.array_equal(random_boxes(sizes[some], some, SCALE, 0, 1), first[some])


def test_an_image_that_no_draw_fits_shows_its_largest_part_of_a_fitting_shape():
    found = boxes(sizes_of(1, 10, 2000))
    assert found.tolist() == [[0, 993, 10, 13]]
    assert boxes(sizes_of(1, 2000, 9)).tolist() == [[994, 0, 12, 9]]


def test_the_fixed_views():
    assert central_boxes(sizes_of(1, 256, 512), 0.875).tolist() == [[16, 144, 224, 224]]
    assert central_boxes(sizes_of(1, 1, 1), 0.875).tolist() == [[0, 0, 1, 1]]
    assert whole_boxes(sizes_of(1, 30, 20)).tolist() == [[0, 0, 30, 20]]
