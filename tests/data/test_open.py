"""`--data` takes a known name, a name under the data root, or a path."""

import os
from pathlib import Path

import pytest

from fastarat.common.errors import UserError
from fastarat.data.formats import image_folder
from fastarat.data.images.cache import data_root
from fastarat.data.open import open_dataset, prepare
from fastarat.verification import doctor
from tests.helpers.small_sets import one_line, pack


def refusal(data, size=None) -> str:
    with pytest.raises(UserError) as error:
        open_dataset(str(data), size)
    return one_line(error)


def test_the_root_is_in_the_home_folder_unless_chosen(monkeypatch, root):
    assert data_root() == root
    monkeypatch.delenv("FASTARAT_DATA")
    assert data_root() == Path.home() / ".cache" / "fastarat"


def test_without_a_home_the_fix_is_named_and_the_doctor_goes_on(monkeypatch):
    for name in ("FASTARAT_DATA", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(UserError) as error:
        data_root()
    assert "set FASTARAT_DATA to a folder" in one_line(error)
    assert (doctor._data().subject, doctor._data().state) == ("data", "missing")


def test_a_name_finds_a_prepared_set_a_folder_or_an_archive_under_the_root(photos, root, tmp_path):
    prepare(str(photos), root / "ready")
    pack(photos, root / "packed.tar.xz", "w:xz")
    photos.rename(root / "loose")
    fingerprints = {open_dataset(name).fingerprint for name in ("ready", "packed", "loose")}
    assert len(fingerprints) == 1


def test_a_path_need_be_no_text(photos):
    assert open_dataset(photos).fingerprint == open_dataset(str(photos)).fingerprint
    with pytest.raises(UserError, match="there is no file or folder"):
        open_dataset(photos / "nowhere")


def test_an_unknown_name_lists_what_there_is(photos, root):
    prepare(str(photos), root / "ready")
    text = refusal("raedy")
    assert "unknown data set 'raedy'" in text and "did you mean 'ready'?" in text
    assert "digits" in text and str(root) in text


def test_a_missing_path_is_named(tmp_path):
    text = refusal(tmp_path / "absent")
    assert f"no file or folder {tmp_path / 'absent'}: give a folder, a file (.tar" in text
    assert ".npz, .beton), or a name that 'fastarat data list' shows" in text
    assert "no file or folder photos.tar.xz" in refusal("photos.tar.xz")


def test_another_file_is_no_data_set(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert "notes.txt is not a data set: expected a folder or .tar" in refusal(tmp_path / "notes.txt")


def test_only_image_folders_are_resized():
    assert "digits has images of 8x8: only stored images can be resized" in refusal("digits", size=32)
    assert open_dataset("digits", size=8).name == "digits"


def test_two_processes_may_decode_the_same_folder_at_once(photos, monkeypatch):
    alone = image_folder.prepare

    def overtaken(source, out, size):
        alone(source, out, size)
        alone(source, out, size)

    monkeypatch.setattr(image_folder, "prepare", overtaken)
    assert len(open_dataset(str(photos)).train.labels) == 6


def test_images_that_change_in_place_are_decoded_again(photos):
    before = open_dataset(str(photos)).fingerprint
    path = photos / "train/cat/0.jpg"
    path.write_bytes((photos / "train/dog/0.jpg").read_bytes())
    os.utime(path, ns=(1, 1))
    assert open_dataset(str(photos)).fingerprint != before
