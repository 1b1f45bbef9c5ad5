"""A data root for every test, an image folder, and the real images of shared/data."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.small_sets import jpeg

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A data root of its own for every test."""
    folder = tmp_path / "root"
    monkeypatch.setenv("FASTARAT_DATA", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A file of shared/data; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"shared/data/{name} is not here")
        return SHARED / name

    return find


@pytest.fixture
def photos(tmp_path) -> Path:
    """An image folder: cats and dogs, three training and two test images of each, all 12x12."""
    folder = tmp_path / "photos"
    for seed, (split, name) in enumerate((s, c) for s in ("train", "test") for c in ("cat", "dog")):
        (folder / split / name).mkdir(parents=True)
        for i in range(3 if split == "train" else 2):
            (folder / split / name / f"{i}.jpg").write_bytes(jpeg(10 * seed + i))
    return folder
