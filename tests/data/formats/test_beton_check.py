"""`fastarat data check` names every bad image of a .beton; `info` says what is in it."""

import numpy as np

from fastarat.data.formats.beton.file import info, problems
from fastarat.data.formats.beton.seal import sha256_of
from tests.helpers.beton_sets import built, folder_contents, patch, patch_struct, pixel_contents, reopened, unsealed
from tests.helpers.small_sets import jpeg


def test_a_whole_file_has_no_problems(photographs, tmp_path):
    assert problems(photographs) == []
    assert problems(unsealed(photographs)) == []
    assert problems(built(pixel_contents(), tmp_path / "raw.beton", mode="raw")) == []


def test_every_changed_image_is_named(photographs):
    data = reopened(photographs)
    for part, i in ((data.train, 1), (data.train, 4), (data.test, 2)):
        middle = int(part.offsets[i] + part.lengths[i] // 2)
        patch(photographs, middle, bytes([part.read(i)[part.lengths[i] // 2] ^ 4]))
    changed = "of photos.beton has changed since it was written (checksum differs)"
    names = ["train image 1", "train image 4", "test image 2"]
    assert problems(photographs) == [f"{name} {changed}" for name in names]


def test_a_changed_label_is_told_although_every_image_is_whole(photographs):
    patch_struct(photographs, 2, "label", value=1)
    (problem,) = problems(photographs)
    assert "has changed outside of its images (header, labels or table)" in problem


def test_a_jpeg_that_cannot_be_decoded_is_named_without_a_seal(photographs):
    data = reopened(photographs)
    start, length = int(data.train.offsets[3]), int(data.train.lengths[3])
    patch(photographs, start + 2, bytes(length // 2))
    (problem,) = problems(unsealed(photographs))
    assert problem.startswith("train image 3 of photos.beton cannot be decoded")


def test_a_damaged_structure_is_the_one_problem(photographs):
    photographs.write_bytes(photographs.read_bytes()[:5000])
    (problem,) = problems(photographs)
    assert "has 5000 bytes instead of" in problem


def test_info_says_what_is_in_the_file(photos, tmp_path):
    (photos / "train/dog/9.jpg").write_bytes(jpeg(9, 100, 90))
    path = built(folder_contents(photos), tmp_path / "photos.beton", str(photos), mode="smart")
    facts = info(path)
    assert facts["name"] == "photos" and facts["classes"] == ["cat", "dog"] and facts["max_value"] == 255
    assert facts["train"] == {"images": 7, "class_min": 3, "class_max": 4}
    assert facts["test"] == {"images": 4, "class_min": 2, "class_max": 2}
    assert facts["stored"] == {"raw": 10, "jpeg": 1} and facts["bytes"] == path.stat().st_size
    assert facts["sizes"] == {"min": [12, 12], "median": [12, 12], "max": [100, 90]}
    assert facts["fingerprint"] == sha256_of(path) and facts["source"] == str(photos)
    assert info(unsealed(path))["classes"] == ["0", "1"]


def test_many_images_are_checked_by_several_processes(tmp_path, monkeypatch):
    from fastarat.data.images import pool

    monkeypatch.setattr(pool, "BATCH", 2)
    monkeypatch.setattr(pool, "num_cores", lambda: 2)
    path = built(pixel_contents(), tmp_path / "set.beton", mode="jpeg")
    patch(path, int(reopened(path).train.offsets[5]) + 50, b"\x01")
    assert len(problems(path)) == 1 and np.char.startswith(problems(path)[0], "train image 5")
