"""Images in every form, and the loaders that read them."""

import pytest

from bench.common.inputs import random_images
from bench.loaders import (
    measure as loaders_run,
)
from bench.loaders.cases import PHOTOS, SMALL, LoaderCase, cases_of, photo_plan, small_plan
from bench.loaders.stores import Stores, photo_stores, random_photos, small_stores
from tests.helpers.loaders import Fake

ALL = {("arrays", "raw"), ("files", "png"), ("beton", "raw"), ("files", "jpeg"), ("beton", "jpeg")}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Stores:
    """Forty images of CIFAR's size in every form."""
    return small_stores(random_images("cifar10", 40), ALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Stores:
    """Smooth JPEGs of different sizes in a tar and a .beton."""
    folder = tmp_path_factory.mktemp("photos")
    random_photos(folder / "photos.tar", 24)
    return photo_stores(folder / "photos.tar", ALL, folder)


@pytest.fixture(autouse=True)
def data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTARAT_DATA", str(tmp_path / "root"))


@pytest.fixture
def of_small(small) -> list[LoaderCase]:
    return cases_of(SMALL, small, small_plan("cpu", True, 32), workers=[1], device="cpu")


@pytest.fixture
def of_photos(photos) -> list[LoaderCase]:
    return cases_of(PHOTOS, photos, photo_plan("cpu", True), workers=[1], device="cpu")


@pytest.fixture
def fake(monkeypatch):
    def install(turns, wrong=None) -> Fake:
        found = Fake(turns, wrong)
        monkeypatch.setattr(loaders_run, "Processes", lambda cache, effort: found)
        return found

    return install
