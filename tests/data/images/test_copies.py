"""A check counts the images that a data set holds twice, however it is stored; small ones say so at each start."""

import shutil

import numpy as np
import pytest

from fastarat.__main__ import main
from fastarat.data.formats import prepared
from fastarat.data.images import copies
from fastarat.data.images.copies import warnings_of
from fastarat.data.images.dataset import Images, from_splits
from fastarat.data.open import open_for_evaluation, prepare
from fastarat.data.tools.check import check
from tests.helpers.beton_sets import built, folder_contents
from tests.helpers.shard_files import samples, tar_shard
from tests.helpers.small_sets import cifar_archive, cifar_files, jpeg, pack

FORMS = {"folder": "", "tar": "w", "compressed": "w:gz", "beton": "", "prepared": ""}


def stored_as(form, photos, folder):
    """The image folder, or what is made of it."""
    if form == "beton":
        return built(folder_contents(photos), folder / "photos.beton", mode="jpeg")
    if form == "prepared":
        prepare(str(photos), folder / "ready")
        return folder / "ready"
    return pack(photos, folder / f"photos.tar{'.gz' * (form == 'compressed')}", FORMS[form]) if FORMS[form] else photos


@pytest.mark.parametrize("form", FORMS)
def test_test_images_that_are_training_images_are_counted(form, photos, tmp_path):
    shutil.copy(photos / "train/cat/1.jpg", photos / "test/cat/1.jpg")
    shutil.copy(photos / "train/cat/2.jpg", photos / "test/dog/0.jpg")
    (line,) = check(str(stored_as(form, photos, tmp_path)))
    first = {"beton": ("test image 1", "train image 1"), "prepared": ("test image 1", "train image 1")}
    name, of = first.get(form, ("test/cat/1.jpg", "train/cat/1.jpg"))
    assert line.startswith("2 of 4 test images are training images too")
    assert f"the first is {name}" in line and f"the same as {of}" in line


@pytest.mark.parametrize("form", FORMS)
def test_images_in_two_classes_are_counted_and_those_twice_in_one_are_none(form, photos, tmp_path):
    shutil.copy(photos / "train/cat/0.jpg", photos / "train/cat/7.jpg")
    shutil.copy(photos / "train/cat/2.jpg", photos / "train/dog/1.jpg")
    (line,) = check(str(stored_as(form, photos, tmp_path)))
    assert line.startswith("1 of 7 train images are in another class too")


def test_copies_in_shards_a_cifar_archive_and_arrays_are_counted(tmp_path):
    shards = tmp_path / "shards"
    tar_shard(shards / "train-0.tar", samples([(jpeg(i), i % 2) for i in range(4)]))
    tar_shard(shards / "test-0.tar", samples([(jpeg(i), i % 2) for i in (8, 2, 9, 3, 5)]))
    (line,) = check(str(shards))
    assert line.startswith("2 of 5 test images are training images too")

    files = cifar_files("cifar10", records=20)
    files["test_batch.bin"] = files["test_batch.bin"][:3073] + files["data_batch_2.bin"][3073:6146]
    *_, line = check(str(cifar_archive(tmp_path / "cifar-10-binary.tar.gz", "cifar10", files)))
    assert line.startswith("1 of 2 test images are training images too (the first is test image 1, the same as train")

    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    images[4] = images[3]
    np.savez(tmp_path / "made.npz", images=images, labels=np.arange(6) % 3)
    assert check(str(tmp_path / "made.npz"))[0].startswith("1 of 6 train images are in another class too")


def test_empty_files_are_no_copies(photos):
    for name in ("train/cat/0.jpg", "train/dog/0.jpg", "test/cat/0.jpg"):
        (photos / name).write_bytes(b"")
    assert [line for line in check(str(photos)) if "zero bytes" not in line] == []


def noise_with_copies(count):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    part = Images(images, np.arange(count) % 2)
    return from_splits("noise", part, part.take(np.arange(2)), ("a", "b"))


def test_a_small_decoded_set_is_compared_at_each_start_and_no_other_is(monkeypatch, photos):
    noise = noise_with_copies(4)
    assert [line.startswith("noise: 2 of 2 test images are training images too") for line in warnings_of(noise)] == [1]
    monkeypatch.setattr(copies, "MUCH", noise.decoded_train.images.nbytes)
    assert warnings_of(noise) == []
    shutil.copy(photos / "train/cat/1.jpg", photos / "test/cat/1.jpg")
    assert warnings_of(folder_contents(photos)) == []


def test_an_evaluation_and_a_training_say_it(tmp_path, capsys):
    prepared.write(noise_with_copies(16), tmp_path / "noise", "here")
    open_for_evaluation(str(tmp_path / "noise"), (8, 8), None)
    assert "2 of 2 test images are training images too" in capsys.readouterr().err
    short = ["--epochs", "1", "--batch", "8", "--out", str(tmp_path / "run")]
    assert main(["train", "digits-at", "--data", str(tmp_path / "noise"), *short]) == 0
    assert "2 of 2 test images are training images too" in capsys.readouterr().err
