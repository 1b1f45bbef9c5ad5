"""scikit-learn's handwritten digits: 1,797 real images that need no download."""

import numpy as np

from fastarat.data.dataset import Dataset, ImageSet, from_arrays

TEST_IMAGES = 360


def load() -> Dataset:
    """8x8 grey images with pixels 0 … 16, uint8 [N, 8, 8, 1]; the 360 test images are always the same."""
    # Imported here because scikit-learn takes a second to load.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int64), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    return from_arrays(
        "digits",
        ImageSet(train_images, train_labels),
        ImageSet(test_images, test_labels),
        classes=tuple(str(digit) for digit in range(10)),
        max_value=16,
    )
