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
    images, labels = pixels.astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int64)
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=TEST_IMAGES, stratify=labels, random_state=0)
    return from_arrays(
        "digits",
        ImageSet(images[train], labels[train]),
        ImageSet(images[test], labels[test]),
        classes=tuple(str(digit) for digit in range(10)),
        max_value=16,
    )
