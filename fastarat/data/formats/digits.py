"""scikit-learn's handwritten digits: 1,797 real images that need no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fastarat.common.errors import UserError
from fastarat.data.images.dataset import Dataset, Images, from_splits

TEST_IMAGES = 360
# Rows of its file, the test images first: its own stratified split with random_state 0.
ROWS = Path(__file__).with_name("digits_rows.npy")


def load() -> Dataset:
    """8x8 grey images with pixels 0 … 16, uint8 [N, 8, 8, 1]; the 360 test images are always the same.

    Raises `UserError` where scikit-learn is not installed.
    """
    rows = np.load(ROWS, allow_pickle=False)
    numbers = np.loadtxt(_file(), delimiter=",", dtype=np.uint8)[rows]  # 64 pixels and the label
    images, labels = numbers[:, :-1].reshape(-1, 8, 8, 1), numbers[:, -1].astype(np.int64)
    return from_splits(
        "digits",
        Images(images[TEST_IMAGES:].copy(), labels[TEST_IMAGES:]),
        Images(images[:TEST_IMAGES].copy(), labels[:TEST_IMAGES]),
        classes=tuple(str(digit) for digit in range(10)),
        max_value=16,
    )


def _file() -> Path:
    """Where scikit-learn keeps them. It is not imported for it, which takes a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("the digits are scikit-learn's, which is not installed: pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
