"""What benchmarks train and on what: recipes by net and method, random images of a known data set's size."""

import numpy as np

from fastarat.config import recipes
from fastarat.data.images.dataset import Dataset, Images

SIZES = {
    "digits": ((8, 8, 1), 10, 16, 1437, 360),
    "cifar10": ((32, 32, 3), 10, 255, 50_000, 10_000),
    "cifar100": ((32, 32, 3), 100, 255, 50_000, 10_000),
}
"""shape of an image, classes, largest pixel, training and test images"""


def random_images(name: str, most: int | None = None) -> Dataset:
    """As `open_dataset(name)` gives, of random pixels and labels; `most` images a split. `name`: of `SIZES`."""
    shape, num_classes, max_value, num_train, num_test = SIZES[name]
    rng = np.random.default_rng(0)

    def split(count: int) -> Images:
        count = min(count, most or count)
        pixels = rng.integers(0, max_value + 1, (count, *shape), dtype=np.uint8)
        return Images(pixels, rng.integers(0, num_classes, count))

    return Dataset("random", split(num_train), split(num_test), tuple(map(str, range(num_classes))), max_value, "")


RECIPES = {"resnet18": "cifar10-resnet18", "wrn-34-10": "cifar10-wrn-34-10", "tiny": "cifar10-tiny", "digits": "digits"}
"""the recipes' names up to the method, by net"""


FAST = "-fast"
"""the end of a recipe's name that is another recipe's method, trained sooner"""


def methods_of(family: str) -> tuple[str, ...]:
    """The methods that a family has recipes of: the most wanted first, and `standard` before ARREST, which needs it."""
    net = recipes.recipe(f"{family}-at").model
    named = (name for name in recipes.names() if name.startswith(f"{family}-") and not name.endswith(FAST))
    # A narrower net's recipes begin alike: cifar10-resnet18-w32-at.
    own = [name for name in named if recipes.recipe(name).model == net]
    found = [name.removeprefix(f"{family}-") for name in own]
    return tuple(sorted(found, key=lambda method: (method != "at", method != "arat", method != "standard", method)))


METHODS = methods_of("digits")
PAPER = methods_of("cifar10-resnet18")
"""with weight averaging, too"""


def method_of(recipe_name: str) -> str:
    """The method that a recipe's name ends in."""
    name = recipe_name.removesuffix(FAST)
    return max((method for method in PAPER if name.endswith(f"-{method}")), key=len)
