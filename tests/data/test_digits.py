"""The embedded digits need no download and are always the same."""

import numpy as np

from fastarat.data.sources import open_dataset


def test_digits_are_8x8_grey_images_of_ten_classes():
    digits = open_dataset("digits")
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert digits.test.images.shape == (360, 8, 8, 1)
    assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int64
    assert digits.max_value == 16 and digits.train.images.max() == 16
    assert digits.classes == tuple("0123456789")
    assert digits.train.images.flags.c_contiguous


def test_every_digit_has_its_share_of_the_test_images():
    counts = np.bincount(open_dataset("digits").test.labels)
    assert counts.min() >= 35 and counts.max() <= 37


def test_the_split_is_the_same_each_time():
    assert open_dataset("digits").fingerprint == open_dataset("digits").fingerprint
