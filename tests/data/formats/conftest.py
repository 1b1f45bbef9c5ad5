"""A .beton that several files read."""

from pathlib import Path

import pytest

from tests.helpers.beton_sets import built, folder_contents


@pytest.fixture
def photographs(photos, tmp_path) -> Path:
    """The image folder as a .beton of JPEGs."""
    return built(folder_contents(photos), tmp_path / "photos.beton", mode="jpeg")
