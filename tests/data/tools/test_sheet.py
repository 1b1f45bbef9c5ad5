"""A contact sheet shows some images of every class."""

import numpy as np
import pytest
from PIL import Image

from fastarat.common.errors import WorkError
from fastarat.data.formats import digits
from fastarat.data.images.dataset import Images
from fastarat.data.tools.sheet import CAPTION, GAP, TILE, write
from tests.helpers.beton_sets import built, folder_contents, pixel_contents, reopened


def tile(path, row: int, column: int) -> np.ndarray:
    top, left = GAP + row * (TILE + CAPTION + GAP) + CAPTION, GAP + column * (TILE + GAP)
    return np.asarray(Image.open(path))[top : top + TILE, left : left + TILE]


def coloured() -> Images:
    """Image i is 10 i everywhere, its class i % 2."""
    images = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 8 * 8 * 3).reshape(-1, 8, 8, 3)
    return Images(images, np.arange(24, dtype=np.int64) % 2)


def test_a_class_is_a_row_of_its_images_chosen_evenly(tmp_path):
    write(coloured(), ("even", "odd"), tmp_path / "sheet.png", num_images=4)
    assert Image.open(tmp_path / "sheet.png").size == (GAP + 4 * (TILE + GAP), GAP + 2 * (TILE + CAPTION + GAP))
    for column, i in enumerate((0, 4, 7, 11)):
        assert (tile(tmp_path / "sheet.png", 0, column) == 20 * i).all()
        assert (tile(tmp_path / "sheet.png", 1, column) == 20 * i + 10).all()


def test_the_class_is_written_over_its_row(tmp_path):
    write(coloured(), ("even", ""), tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    captions = [sheet[GAP + row * (TILE + CAPTION + GAP) :][:CAPTION] for row in range(2)]
    assert captions[0].min() < 100 and captions[1].min() == 255


def test_many_classes_are_shown_in_part_and_odd_names_do_no_harm(tmp_path):
    images = Images(np.zeros((30, 4, 4, 3), np.uint8), np.arange(30, dtype=np.int64))
    write(images, tuple(f"班{i}\n" for i in range(30)), tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").height == GAP + 10 * (TILE + CAPTION + GAP)


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
def test_stored_images_are_shown(photos, tmp_path, mode):
    data = reopened(built(folder_contents(photos), tmp_path / "p.beton", mode=mode))
    write(data.train, data.classes, tmp_path / "sheet.png")
    enlarged = np.asarray(Image.open(photos / "train/dog/2.jpg")).repeat(TILE // 12, 0).repeat(TILE // 12, 1)
    assert np.array_equal(tile(tmp_path / "sheet.png", 1, 2), enlarged)


def test_grey_images_of_fewer_levels_are_shown(tmp_path):
    data = digits.load()
    write(data.train, data.classes, tmp_path / "sheet.png", max_value=data.max_value)
    first = data.train.images[np.flatnonzero(data.train.labels == 0)[0], :, :, 0]
    assert np.array_equal(tile(tmp_path / "sheet.png", 0, 0)[::12, ::12, 1], (first * (255 / 16)).round())


def test_a_sheet_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(WorkError):
        write(pixel_contents().train, ("a", "b", "c"), tmp_path / "none" / "sheet.png")
