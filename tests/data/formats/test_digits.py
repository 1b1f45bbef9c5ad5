"""The embedded digits need no download and are always the same."""

import numpy as np
import pytest

from fastarat.data.open import open_dataset


def test_digits_are_8x8_grey_images_of_ten_classes():
    digits = open_dataset("digits")
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert digits.test.images.shape == (360, 8, 8, 1)
    assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int64
    assert digits.max_value == 16 and digits.train.images.max() == 16
    assert digits.classes == tuple("0123456789")
    assert digits.train.images.flags.c_contiguous


def test_images_and_split_are_scikit_learns():
    datasets, selection = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.model_selection")
    pixels, labels = datasets.load_digits(return_X_y=True)
    rows = selection.train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    digits = open_dataset("digits")
    for part, own in zip((digits.train, digits.test), rows, strict=True):
        assert np.array_equal(part.images.reshape(-1, 64), pixels[own]) and np.array_equal(part.labels, labels[own])
