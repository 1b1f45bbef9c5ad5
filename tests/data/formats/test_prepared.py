"""A prepared set is written whole or not at all, and a damaged one is named when it is opened or checked."""

import errno
import json

import numpy as np
import pytest

from fastarat.common import arrays
from fastarat.common.errors import UserError, WorkError
from fastarat.common.json_files import checksum_of
from fastarat.data.formats import prepared
from fastarat.data.open import open_dataset, prepare
from fastarat.data.tools.check import check
from tests.helpers.small_sets import one_line


@pytest.fixture
def ready(photos, tmp_path):
    prepare(str(photos), tmp_path / "ready")
    return tmp_path / "ready"


def change_manifest(folder, **values):
    """With other values, as if they had been written."""
    path = folder / "manifest.json"
    changed = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({**changed, "checksum": checksum_of(changed)}))


def refusal(folder) -> str:
    with pytest.raises(UserError) as error:
        open_dataset(str(folder))
    return one_line(error)


def test_what_was_prepared_opens_as_memory_maps(ready, photos):
    dataset = open_dataset(str(ready))
    assert isinstance(dataset.train.images, np.memmap) and not dataset.train.images.flags.writeable
    assert dataset.name == "photos"
    assert dataset.fingerprint == open_dataset(str(photos)).fingerprint
    assert check(str(ready)) == []


def test_the_manifest_says_what_is_there(ready, photos):
    manifest = json.loads((ready / "manifest.json").read_text())
    assert manifest["version"] == 2 and manifest["source"] == str(photos)
    assert manifest["counts"] == {"train": 6, "test": 4}
    assert manifest["class_counts"] == {"train": [3, 3], "test": [2, 2]}
    assert manifest["image_shape"] == [12, 12, 3]
    assert len(manifest["files"]["train_images.npy"]["sha256"]) == 64


def test_the_digits_can_be_prepared_and_stay_the_same_set(tmp_path):
    written = prepare("digits", tmp_path / "digits-set")
    digits = open_dataset("digits")
    assert written.fingerprint == digits.fingerprint and written.max_value == 16
    assert np.array_equal(written.test.images, digits.test.images)


def test_nothing_that_exists_is_overwritten(ready, photos):
    with pytest.raises(UserError) as error:
        prepare(str(photos), ready)
    assert f"{ready} exists already" in one_line(error)


def test_a_full_disk_is_one_line_and_leaves_nothing(photos, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrays.os, "posix_fallocate", full)
    with pytest.raises(WorkError) as error:
        prepare(str(photos), tmp_path / "out" / "set")
    assert "No space left on device; nothing was left there" in one_line(error)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_prepare_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "seal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare("digits", tmp_path / "out" / "set")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_truncated_file_is_named(ready):
    path = ready / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    assert "train_images.npy has 2719 bytes instead of 2720" in refusal(ready)
    assert check(str(ready)) == [refusal(ready)]


def test_a_missing_file_is_named(ready):
    (ready / "test_labels.npy").unlink()
    assert "test_labels.npy is missing" in refusal(ready)


def test_a_set_of_a_newer_version_asks_for_an_upgrade(ready):
    change_manifest(ready, version=3)
    assert "made by a newer fastarat" in refusal(ready) and "upgrade fastarat" in refusal(ready)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": "one"}'])
def test_a_manifest_that_makes_no_sense_is_named(ready, text):
    (ready / "manifest.json").write_text(text)
    assert "prepare" in refusal(ready) and str(ready) in refusal(ready)


def test_a_label_that_no_class_has_is_named(ready):
    path = ready / "train_labels.npy"
    np.save(path, np.array([0, 0, 9, 1, 1, 1]))
    assert "train_labels.npy: label 9 of image 2 is not in 0 … 1" in refusal(ready)


@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npy"])
def test_an_array_of_another_type_is_named(ready, name):
    path = ready / name
    array = np.load(path)
    np.save(path, array.view(np.int8 if array.dtype == np.uint8 else np.float64))
    assert name in refusal(ready) and " not " in refusal(ready)


def test_an_array_of_pickled_objects_is_never_loaded(ready):
    path = ready / "train_labels.npy"
    np.save(path, np.array([{}] * 6), allow_pickle=True)
    manifest = json.loads((ready / "manifest.json").read_text())
    manifest["files"]["train_labels.npy"]["bytes"] = path.stat().st_size
    change_manifest(ready, **manifest)
    assert "train_labels.npy is object [6], not int64 [6]" in refusal(ready)


def test_a_flipped_bit_is_found_by_a_check(ready):
    path = ready / "test_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (problem,) = check(str(ready))
    assert "test_images.npy has changed since it was written" in problem


def test_a_fingerprint_of_another_set_is_found_by_a_check(ready):
    change_manifest(ready, fingerprint="0" * 64)
    (problem,) = check(str(ready))
    assert "fingerprint is not that of the images" in problem
