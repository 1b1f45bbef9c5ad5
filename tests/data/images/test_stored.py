"""Data sets whose images stay as they are stored: what is found in them, kept of them, and left out."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastarat.common.errors import UserError, WorkError
from fastarat.data.formats import shards
from fastarat.data.formats.beton.storage import Storage
from fastarat.data.formats.find import find
from fastarat.data.images import cache
from fastarat.data.images import stored as encoded
from fastarat.data.images import whole_sets as scan_module
from fastarat.data.images.decoding import pixels_of
from fastarat.data.images.whole_sets import decoded, one_size_of, with_decoded_test
from fastarat.data.loading.sampling import whole_boxes
from fastarat.data.open import build, open_dataset, open_for_evaluation, prepare
from fastarat.data.tools.check import check
from tests.helpers.shard_files import samples, tar_shard
from tests.helpers.small_sets import jpeg, one_line, pack


def pixels(images) -> np.ndarray:
    size = one_size_of(images)
    boxes = whole_boxes(images.sizes)
    return np.stack([pixels_of(images.file(i), boxes[i], size) for i in range(len(images))])


def stored(path: Path, corrupt="fatal"):
    return find(str(path)).open_stored(corrupt)


def test_a_folder_its_tar_and_its_prepared_form_hold_the_same_images_in_the_same_order(photos, tmp_path):
    prepare(str(photos), tmp_path / "prepared")
    forms = [stored(photos), stored(pack(photos, tmp_path / "photos.tar", "w")), stored(tmp_path / "prepared")]
    reference = open_dataset(str(photos))
    for form in forms:
        assert form.classes == ("cat", "dog")
        assert np.array_equal(pixels(form.train), reference.decoded_train.images)
        assert np.array_equal(form.train.labels, reference.train.labels)
        assert np.array_equal(pixels(form.test), reference.test.images)


def test_a_compressed_archive_is_refused_with_the_way_out(photos, tmp_path):
    archive = pack(photos, tmp_path / "photos.tar.gz", "w:gz")
    with pytest.raises(UserError) as error:
        stored(archive)
    assert "is compressed" in one_line(error) and f"fastarat data prepare {archive} OUT" in str(error.value)


def test_an_image_that_comes_in_pieces_is_read_whole_and_one_that_ends_early_is_an_error(photos, monkeypatch):
    images, pread = stored(photos).train, os.pread
    whole = images.read(0)
    monkeypatch.setattr(os, "pread", lambda file, count, at: pread(file, min(count, 100), at))
    assert len(whole) > 100 and images.read(0) == whole
    with pytest.raises(WorkError, match="ends early"):
        images.span(0)._replace(length=len(whole) + 1).read()


def test_digits_have_no_files_of_their_own():
    with pytest.raises(UserError) as error:
        find("digits").open_stored()
    assert "not in files of their own" in one_line(error)


DAMAGE = {
    "corrupt": b"\xff\xd8\xff" + b"nothing of the kind" * 9,
    "truncated": jpeg(1)[:200],
    "empty": b"",
    "deep": jpeg(1, mode="I;16", kind="PNG"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_image_that_cannot_be_decoded_is_named_before_training(photos, damage):
    bad = ["train/cat/1.jpg", "train/cat/2.jpg", "train/dog/0.jpg", "train/dog/1.jpg"]
    for name in bad:
        (photos / name).write_bytes(DAMAGE[damage])
    with pytest.raises(UserError) as error:
        stored(photos)
    assert "train/cat/1.jpg cannot be decoded" in one_line(error) and "and 1 more" in str(error.value)
    assert str(error.value).endswith("--loading.corrupt skip' leaves such images out")


def test_or_named_and_left_out(photos, capsys):
    whole = stored(photos)
    wanted = pixels(whole.train)[[0, 2, 3, 4, 5]]
    (photos / "train/cat/1.jpg").write_bytes(b"no image")
    (photos / "test/dog/0.jpg").write_bytes(b"")
    found = stored(photos, "skip")
    assert found.num_skipped == 2
    assert found.train.names == tuple(name for name in whole.train.names if name != "train/cat/1.jpg")
    assert np.array_equal(pixels(found.train), wanted)
    assert len(found.test) == 3
    told = capsys.readouterr().err
    assert "left out: train/cat/1.jpg" in told and "left out: test/dog/0.jpg" in told
    assert found.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("L", "PNG")]
)
def test_other_modes_are_images_too(photos, mode, kind):
    (photos / "train/cat/1.jpg").write_bytes(jpeg(5, mode=mode, kind=kind))
    assert pixels(stored(photos).train).shape == (6, 12, 12, 3)


def test_a_set_of_which_nothing_is_left_is_an_error(photos):
    for path in photos.glob("train/*/*"):
        path.write_bytes(b"text")
    with pytest.raises(UserError) as error:
        stored(photos, "skip")
    assert "no training image can be decoded" in one_line(error)


def test_names_that_are_no_utf8_are_names_too(photos, tmp_path):
    first = min((photos / "train/cat").iterdir())
    first.rename(Path(os.fsdecode(os.fsencode(first.parent) + b"/\xff\xfe" + os.fsencode(first.suffix))))
    assert len(with_decoded_test(stored(photos), None, 1.0).train) == len(open_dataset(str(photos)).train.labels)
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    shutil.copytree(photos, folder)
    build(str(folder), folder.with_suffix(".beton"), Storage("raw"))
    assert len(stored(folder.with_suffix(".beton")).train) == len(stored(photos).train)


def test_evaluations_of_a_prepared_set_see_what_training_was_watched_on(photos, tmp_path):
    prepare(str(photos), tmp_path / "prepared")
    for size in (6, 8):  # which it has; then its images are as they are
        watched = with_decoded_test(stored(tmp_path / "prepared"), (size, size), 0.875).test.images
        evaluated = open_for_evaluation(str(tmp_path / "prepared"), (size, size), 0.875).test.images
        assert watched.shape[1:] == (size, size, 3) and np.array_equal(watched, evaluated)


def test_an_image_of_one_pixel_is_resized(photos):
    (photos / "train/cat/1.jpg").write_bytes(jpeg(5, 1, 1))
    found = stored(photos)
    assert found.train.sizes[1].tolist() == [1, 1]
    assert len(set(map(bytes, decoded(found, 8).decoded_train.images[1].reshape(-1, 3)))) == 1


def test_the_second_look_reads_no_image_and_a_changed_file_is_looked_at_again(photos, monkeypatch):
    first = stored(photos)
    decode = scan_module.examine
    monkeypatch.setattr(scan_module, "examine", lambda span: pytest.fail("looked again"))
    assert stored(photos).fingerprint == first.fingerprint
    monkeypatch.setattr(scan_module, "examine", decode)
    (photos / "train/cat/1.jpg").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"train/cat/1\.jpg"):
        stored(photos)


def test_a_file_that_cannot_be_read_now_is_no_image_that_is_damaged(photos, root, monkeypatch):
    def refuse(path, flags, real=os.open):
        if str(path).endswith("train/cat/1.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags)

    with monkeypatch.context() as patched:
        patched.setattr(encoded.os, "open", refuse)
        with pytest.raises(UserError) as error:
            find(str(photos)).open_stored("skip")
    assert "train/cat/1.jpg: Permission denied" in one_line(error)
    assert find(str(photos)).open_stored().num_skipped == 0


def test_a_broken_link_is_named(photos):
    (photos / "train/cat/lost.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(UserError, match=r"train/cat/lost\.jpg: No such file or directory; restore it, or remove it"):
        stored(photos)
    (problem,) = check(str(photos))
    assert "train/cat/lost.jpg: No such file or directory" in problem


def test_what_other_rules_found_is_found_again(photos, monkeypatch):
    stored(photos)
    looked = []
    monkeypatch.setattr(cache, "DECODING", 0)
    monkeypatch.setattr(scan_module, "examine", lambda span: looked.append(span.name) or (12, 12))
    stored(photos)
    assert "train/cat/1.jpg" in looked


def test_a_damaged_memory_of_the_last_look_is_no_matter(photos, root):
    first = stored(photos)
    for kept in (root / "scanned").iterdir():
        kept.write_bytes(kept.read_bytes()[:50])
    assert stored(photos).fingerprint == first.fingerprint


def test_the_index_of_shards_is_kept_until_one_changes(tmp_path, monkeypatch):
    folder = tmp_path / "shards"
    folder.mkdir()
    for split in ("train", "val"):
        tar_shard(folder / f"{split}-0.tar", samples([(jpeg(i), i % 2) for i in range(4)]))
    first = stored(folder)
    index = shards.index
    monkeypatch.setattr(shards, "index", lambda folder: pytest.fail("read again"))
    again = stored(folder)
    assert again.fingerprint == first.fingerprint and again.classes == first.classes
    assert np.array_equal(pixels(again.train), pixels(first.train))
    monkeypatch.setattr(shards, "index", index)
    tar_shard(folder / "train-0.tar", samples([(jpeg(9), 0), (jpeg(8), 1)]))
    assert len(stored(folder).train) == 2


def test_a_streamed_set_shows_evaluations_the_middle_of_its_test_images_and_keeps_them(photos, monkeypatch):
    found = with_decoded_test(stored(photos), (6, 6), 0.5)
    assert found.image_shape == (6, 6, 3)
    difference = found.test.images.astype(int) - pixels(stored(photos).test)[:, 3:9, 3:9]
    assert np.abs(difference).max() <= 1  # the middle, of the wanted size already: resampled to itself
    assert np.array_equal(open_for_evaluation(str(photos), (6, 6), 0.5).test.images, found.test.images)


def test_images_of_different_sizes_need_one(photos):
    (photos / "train/cat/1.jpg").write_bytes(jpeg(5, 20, 10))
    with pytest.raises(UserError) as error:
        with_decoded_test(stored(photos), None, 1.0)
    assert "images differ in size: 'fastarat train --size 128' brings them to one" in one_line(error)


def test_evaluations_decode_test_images_alone_and_leave_out_what_cannot_be(photos, root):
    (photos / "train/cat/1.jpg").write_bytes(b"no image")
    (photos / "test/dog/0.jpg").write_bytes(b"")
    found = open_for_evaluation(str(photos), (12, 12), None)
    assert len(found.test.labels) == 3 and found.image_shape == (12, 12, 3)
    assert [path.name.rsplit("-", 2)[0] for path in (root / "decoded").iterdir()] == ["photos-test"]


def test_evaluations_take_what_training_has_decoded_already(photos, root):
    whole = open_dataset(str(photos))
    assert np.array_equal(open_for_evaluation(str(photos), (12, 12), None).test.images, whole.test.images)
    assert not (root / "decoded").exists()
