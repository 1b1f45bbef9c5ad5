"""What fastarat keeps of a data set is believed only as far as its checksums go; a name in it is no path."""

import os
from pathlib import Path

import numpy as np
import pytest

from fastarat.common.errors import UserError
from fastarat.data.images.decoding import File, decode
from fastarat.data.open import open_dataset, open_for_evaluation, prepare
from fastarat.data.tools.check import check
from tests.helpers.beton_sets import built, change_seal, folder_contents
from tests.helpers.mutants import FEW, MANY, outcomes
from tests.helpers.small_sets import jpeg

CHANGES = {
    "empty": lambda good: b"",
    "cut": lambda good: good[: len(good) // 2],
    "longer": lambda good: good + b"\0",
    "its header": lambda good: good[:60] + b"?" + good[61:],
    "a byte": lambda good: good[:-3] + bytes([good[-3] ^ 255]) + good[-2:],
}


@pytest.mark.parametrize("change", CHANGES)
def test_decoded_images_that_changed_are_decoded_again(photos, root, tmp_path, change, capsys):
    path = str(built(folder_contents(photos), tmp_path / "photos.beton", mode="jpeg"))
    good = np.array(open_for_evaluation(path, (12, 12), 1.0).test.images)
    (kept,) = (root / "decoded").iterdir()
    kept.write_bytes(CHANGES[change](kept.read_bytes()))
    capsys.readouterr()
    assert np.array_equal(open_for_evaluation(path, (12, 12), 1.0).test.images, good)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(kept) in said and "decoded again" in said
    assert np.array_equal(open_for_evaluation(path, (12, 12), 1.0).test.images, good)
    assert capsys.readouterr().err == "" and list((root / "decoded").iterdir()) == [kept]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("file", ["manifest.json", "train_images.npy", "test_labels.npy"])
def test_a_decoded_folder_that_changed_is_decoded_again(photos, root, file, change, capsys):
    good = np.array(open_dataset(str(photos)).train.images)
    (kept,) = (root / "prepared").iterdir()
    (kept / file).write_bytes(CHANGES[change]((kept / file).read_bytes()))
    capsys.readouterr()
    again = open_dataset(str(photos))
    assert np.array_equal(again.train.images, good) and again.test.labels.tolist() == [0, 0, 1, 1]
    assert file in (said := capsys.readouterr().err) and "decoded again" in said
    open_dataset(str(photos))
    assert capsys.readouterr().err == ""


def test_what_is_no_file_in_their_place_is_named(photos, root, tmp_path):
    path = str(built(folder_contents(photos), tmp_path / "photos.beton", mode="jpeg"))
    good = np.array(open_for_evaluation(path, (12, 12), 1.0).test.images)
    (kept,) = (root / "decoded").iterdir()
    kept.unlink()
    os.mkfifo(kept)
    assert np.array_equal(open_for_evaluation(path, (12, 12), 1.0).test.images, good)


@pytest.mark.parametrize("name", ["/etc/evil", "../../evil", "a/../../../evil", "evil\0", "\ud800", "x" * 300])
def test_a_name_in_a_file_is_no_path(photos, root, tmp_path, name):
    path = built(folder_contents(photos), tmp_path / "photos.beton", mode="jpeg")
    change_seal(path, name=name)
    before = set(tmp_path.rglob("*"))
    for _ in range(2):
        assert len(open_dataset(str(path)).test.images) == 4
    assert all(root in new.parents or new == root for new in set(tmp_path.rglob("*")) - before)
    assert len(list((root / "decoded").iterdir())) == 2


def facts(path: Path) -> list[object]:
    """All that a data set is."""
    data = open_dataset(str(path))
    parts = [array.tobytes() for part in (data.train, data.test) for array in (part.images, part.labels)]
    return [*parts, data.name, data.classes, data.max_value, data.fingerprint]


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", ["", ".json"])
def test_a_damaged_beton_or_seal_is_refused_or_the_same(photos, tmp_path, count, file):
    path = built(folder_contents(photos), tmp_path / "photos.beton", mode="jpeg")
    place = Path(f"{path}{file}")
    found = outcomes(place, place.read_bytes(), count // 4 if file == "" else count, lambda: facts(path))
    assert found["refused"] > 0.9 * found.total()


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_damaged_beton_without_checksums_ends_nothing(photos, tmp_path, count):
    path = built(folder_contents(photos), tmp_path / "photos.beton", mode="jpeg")
    Path(f"{path}.json").unlink()
    found = outcomes(path, path.read_bytes(), count // 10, lambda: facts(path), may_differ=True, seed="unsealed")
    assert found["refused"] > count / 40


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", ["manifest.json", "train_images.npy", "test_labels.npy"])
def test_a_damaged_prepared_set_is_refused_or_the_same(photos, tmp_path, count, file):
    path = tmp_path / "ready"
    prepare(str(photos), path)

    def opened():
        if problems := check(str(path)):
            raise UserError(problems[0])
        return facts(path)

    found = outcomes(path / file, (path / file).read_bytes(), count // 3, opened)
    assert found["refused"] > 0.9 * found.total()


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_image_is_refused_or_the_same_where_its_format_can_tell(tmp_path, kind, count):
    path = tmp_path / "image"

    def opened():
        image = decode(File("image", path.read_bytes()), (12, 12), resize=True, share=1.0)
        if image.problem:
            raise UserError(image.problem)
        return image.size, image.pixels.tobytes()

    found = outcomes(path, jpeg(0, kind=kind), count, opened, may_differ=kind == "JPEG", seed=kind)
    assert found["refused"] > count / 3
