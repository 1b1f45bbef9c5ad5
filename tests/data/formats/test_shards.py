"""WebDataset tars and TFRecords open as the folder that they were made from; whatever is wrong in them is named."""

import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastarat.common.errors import UserError
from fastarat.data.formats import image_folder, shards, webdataset
from fastarat.data.formats.find import FORMATS, find
from fastarat.data.images.stored import PER_IMAGE, StoredImages
from fastarat.data.images.whole_sets import examine
from fastarat.data.loading.decoders.dali import DALIDecoder
from fastarat.data.loading.decoders.decoder import Request
from fastarat.data.loading.sampling import whole_boxes
from fastarat.data.open import open_dataset
from fastarat.data.tools.check import check
from tests.helpers.mutants import memory_of
from tests.helpers.shard_files import example, samples, tar_shard, tfrecord
from tests.helpers.small_sets import jpeg, one_line


def images(count: int, first: int = 0, labels: int = 2) -> list[tuple[bytes, int]]:
    return [(jpeg(first + i), i % labels) for i in range(count)]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        shards.index(folder)
    text = one_line(error)
    assert str(folder) in text
    return text


def pixels(stored: StoredImages) -> np.ndarray:
    sizes = np.array([examine(stored.span(i)) for i in range(len(stored))], np.int32)
    request = Request(np.arange(len(stored)), whole_boxes(sizes), (12, 12))
    (batch,) = DALIDecoder(replace(stored, sizes=sizes), 1).decode([request])
    return batch.numpy()


def as_tars(folder: Path, train: list[tuple[bytes, int]], test: list[tuple[bytes, int]]) -> Path:
    tar_shard(folder / "train-000.tar", samples(train[:4]))
    tar_shard(folder / "train-001.tar", samples(train[4:]))
    tar_shard(folder / "val-000.tar", samples(test))
    return folder


def as_tfrecords(folder: Path, train: list[tuple[bytes, int]], test: list[tuple[bytes, int]]) -> Path:
    records = [example(image__encoded=content, image__class__label=label) for content, label in train]
    tfrecord(folder / "train-00000-of-00002", records[:2])
    tfrecord(folder / "train-00001-of-00002", records[2:])
    tfrecord(folder / "validation.tfrecords", [example(label=label, image=content) for content, label in test])
    return folder


def stored_in(photos: Path, split: str) -> list[tuple[bytes, int]]:
    """The images of a folder, and their classes."""
    files = sorted((photos / split).glob("*/*.jpg"))
    return [(file.read_bytes(), ("cat", "dog").index(file.parent.name)) for file in files]


@pytest.mark.parametrize("write", [as_tars, as_tfrecords])
def test_shards_decode_to_the_pixels_and_labels_of_the_folder_they_were_made_from(photos, tmp_path, write):
    folder = write(tmp_path / "sharded", stored_in(photos, "train"), stored_in(photos, "test"))
    (folder / "classes.txt").write_text("cat\ndog\n")
    assert find(str(folder)).format is FORMATS["shards"]
    of_shards, of_folder = shards.index(folder), image_folder.stored(photos)
    assert of_shards.classes == of_folder.classes == ("cat", "dog")
    for mine, theirs in zip(of_shards.splits.values(), of_folder.splits.values(), strict=True):
        assert mine.labels.tolist() == theirs.labels.tolist() and mine.labels.dtype == np.int64
        assert [mine.read(i) for i in range(len(mine))] == [theirs.read(i) for i in range(len(theirs))]
        assert np.array_equal(pixels(mine), pixels(theirs))


def test_shards_may_lie_in_folders_of_their_splits(tmp_path):
    flat = as_tars(tmp_path / "flat", images(6), images(4, 10))
    deep = tmp_path / "deep"
    for file in flat.iterdir():
        place = deep / ("train" if file.name.startswith("train") else "validation")
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / f"shard-{file.name[-7:]}")
    assert shards.is_shards(deep)
    data = shards.index(deep)
    assert data.train.names[4:] == ("train/shard-001.tar/00000.jpg", "train/shard-001.tar/00001.jpg")
    assert len(data.test) == 4 and data.classes == ("0", "1")


def test_an_image_folder_is_not_taken_for_shards(photos, tmp_path):
    assert not shards.is_shards(photos)
    tar_shard(photos / "train.tar", [])  # what it was unpacked from, perhaps
    assert not shards.is_shards(photos)
    (tmp_path / "other").mkdir()
    for name in ("trainer.tar", "values.tfrecord", "photos.tar", "train.zip", "train-1-of-2"):
        (tmp_path / "other" / name).touch()
    assert not shards.is_shards(tmp_path / "other")
    (tmp_path / "other" / "train-00001-of-00002").touch()
    assert shards.is_shards(tmp_path / "other")


def test_labels_from_1_become_labels_from_0_and_that_is_said(tmp_path, capsys):
    train, test = ([(content, label + 1) for content, label in images(6, first, 3)] for first in (0, 10))
    folder = as_tfrecords(tmp_path / "sharded", train, test)
    data = shards.index(folder)
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2] and data.classes == ("1", "2", "3")
    assert "classes 1 … 3 are called 0 … 2" in capsys.readouterr().err
    (folder / "classes.txt").write_text("tench\ngoldfish\nshark\n")
    data = shards.index(folder)
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2] and data.classes == ("tench", "goldfish", "shark")


def test_a_class_without_images_keeps_its_number_if_it_has_a_name(tmp_path, capsys):
    folder = as_tars(tmp_path / "sharded", [(jpeg(i), 2 * (i % 2)) for i in range(6)], [(jpeg(9), 2)])
    (folder / "classes.txt").write_text("ant\nbee\ncat\n")
    data = shards.index(folder)
    assert data.train.labels.tolist() == [0, 2] * 3 and data.test.labels.tolist() == [2]
    assert data.classes == ("ant", "bee", "cat")
    assert capsys.readouterr().err == ""
    (folder / "classes.txt").write_text("ant\nbee\n")
    assert "classes.txt has 2 names, and labels go from 0 to 2" in refusal(folder)


def test_a_test_label_that_was_never_trained_on_is_named(tmp_path):
    folder = as_tars(tmp_path / "sharded", images(6), [(jpeg(9), 0), (jpeg(10), 5)])
    assert "val-000.tar/00001.jpg has class 5, which no training image has (1 such test images)" in refusal(folder)


GOOD = ("a.jpg", jpeg(0)), ("a.cls", b"0")
WRONG = {
    "b has an image and no class (.cls)": [("b.jpg", jpeg(1))],
    "b has a class and no image (jpg, jpeg, png)": [("b.webp", b""), ("b.cls", b"0")],
    "b has 2 images": [("b.jpg", jpeg(1)), ("b.png", jpeg(1)), ("b.cls", b"0")],
    "sub/b has two classes": [("sub/b.jpg", jpeg(1)), ("sub/b.cls", b"0"), ("sub/b.cls", b"1")],
    "b has the class 'bee', which is not a number": [("b.jpg", jpeg(1)), ("b.cls", b"bee")],
    "b has the class '-1', which is not a number": [("b.jpg", jpeg(1)), ("b.cls", b"-1")],
}


@pytest.mark.parametrize("problem", WRONG)
def test_a_sample_of_a_tar_that_is_not_one_image_and_one_class_is_named(tmp_path, problem):
    folder = as_tars(tmp_path / "sharded", images(6), images(4, 10))
    tar_shard(folder / "train-001.tar", [*GOOD, *WRONG[problem]])
    assert f"train-001.tar: {problem}" in refusal(folder)


DOTTED = {
    "every name its class": (("img.v1.jpg", "img.v1.cls", "img.v2.jpg", "img.v2.cls"), ["img.v1.jpg", "img.v2.jpg"]),
    "dots in a folder": (("a.b/0.jpg", "a.b/0.cls", "a.c/0.jpg", "a.c/0.cls"), ["a.b/0.jpg", "a.c/0.jpg"]),
    "a dot more in the image": (("img.v1.jpg", "img.cls"), ["img.v1.jpg"]),
    "a dot in front": ((".a.b.jpg", ".a.cls"), [".a.b.jpg"]),
    "a sample's mask and second class": (("a.v1.jpg", "a.v1.cls", "a.v1.seg.png", "a.v1.coarse.cls"), ["a.v1.jpg"]),
    "capitals": (("A.JPG", "A.CLS"), ["A.JPG"]),
}


@pytest.mark.parametrize("kind", DOTTED)
def test_names_with_dots_keep_their_samples(tmp_path, kind):
    members, expected = DOTTED[kind]
    path = tar_shard(
        tmp_path / "a.tar", [(name, b"1" if name.lower().endswith("cls") else jpeg(0)) for name in members]
    )
    problems = []
    found = list(webdataset.samples(path, "a.tar", problems))
    assert [sample.name for sample in found] == [f"a.tar/{name}" for name in expected] and problems == []
    assert {sample.label for sample in found} == {1}


def test_a_hard_link_in_a_shard_is_the_file_that_it_stands_for(tmp_path):
    path = tar_shard(tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("a.cls", b"1")])
    with tarfile.open(path, "a") as archive:
        for name in ("b.jpg", "b.cls", "c.jpg"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, f"a{name[1:]}" if name[0] == "b" else "lost.jpg"
            archive.addfile(member)
    problems = []
    first, second = webdataset.samples(path, "a.tar", problems)
    assert second == first._replace(name="a.tar/b.jpg")
    assert problems == ["a.tar: c.jpg is a hard link and no file"]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("cifar10-train.tfrecord-00000-of-00001", "cifar10-test.tfrecord-00000-of-00001"),
        ("my.set_train_001.tar", "my.set_val_001.tar"),
    ],
)
def test_shards_are_known_by_the_split_in_their_names_as_data_sets_have_it(tmp_path, train, test, capsys):
    for name in (train, test):
        if ".tar" in name:
            tar_shard(tmp_path / "w" / name, samples(images(4)))
            tar_shard(tmp_path / "w" / f"._{name}", [])
        else:
            tfrecord(tmp_path / "w" / name, [example(image=jpeg(i), label=i % 2) for i in range(4)])
    assert find(str(tmp_path / "w")).format is FORMATS["shards"]
    assert [len(part) for part in shards.index(tmp_path / "w").splits.values()] == [4, 4]
    assert "left out" not in capsys.readouterr().err


def test_a_shard_or_a_pattern_of_shards_says_that_their_folder_is_wanted(tmp_path):
    path = tar_shard(tmp_path / "train-000.tar", samples(images(2)))
    for data in (path, tmp_path / "train-{000..146}.tar"):
        with pytest.raises(UserError, match="give the folder that"):
            open_dataset(str(data))


def test_a_name_with_two_splits_is_of_none(tmp_path):
    for name in ("train-0.tar", "val-0.tar", "val-of-train-0.tar"):
        tar_shard(tmp_path / "w" / name, samples(images(2)))
    assert [path.name for path in shards.files(tmp_path / "w")] == ["train-0.tar", "val-0.tar"]


@pytest.mark.parametrize("suffix", ["jpg", "cls"])
def test_the_size_of_a_member_is_bounded_before_it_is_read(tmp_path, suffix):
    path = tar_shard(
        tmp_path / "a.tar", [*GOOD, (f"b.{'cls' if suffix == 'jpg' else 'jpg'}", b"0"), (f"b.{suffix}", b"")]
    )
    content, size = bytearray(path.read_bytes()), 3 << 30
    at = content.rindex(f"b.{suffix}".encode())
    content[at + 124 : at + 136] = b"%011o\0" % size
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    path.write_bytes(content[: at + 512])
    os.truncate(path, at + 512 + size + 1024)
    problems = []
    with memory_of(1 << 29):
        assert len(list(webdataset.samples(path, "a.tar", problems))) == 1
    (problem,) = problems
    assert "3,221,225,472 bytes" in problem


def test_what_else_a_sample_has_is_left_alone(tmp_path):
    folder = as_tars(tmp_path / "sharded", images(6), images(4, 10))
    tar_shard(
        folder / "train-001.tar", [*GOOD, ("a.json", b"{}"), ("a.seg.png", b"x"), ("README", b"x"), ("c.txt", b"x")]
    )
    assert len(shards.index(folder).train) == 5


def test_a_record_without_image_or_class_is_named(tmp_path):
    folder = as_tfrecords(tmp_path / "sharded", images(4), images(2, 10))
    tfrecord(folder / "train-00001-of-00002", [example(label=1), example(image=jpeg(1)), example(image=b"", label=-1)])
    text = refusal(folder)
    assert "train-00001-of-00002, record 0 has no image (image/encoded or image)" in text
    assert "record 1 has no class (image/class/label or label from 0)" in text
    assert "record 2 has no class" in text


@pytest.mark.parametrize(("write", "shard"), [(as_tars, "train-001.tar"), (as_tfrecords, "train-00001-of-00002")])
def test_a_shard_cut_or_emptied_is_named(tmp_path, write, shard):
    folder = write(tmp_path / "sharded", images(6), images(4, 10))
    whole = (folder / shard).read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1 if write is as_tfrecords else 2048):
        (folder / shard).write_bytes(whole[:length])
        assert shard in refusal(folder)


@pytest.mark.parametrize("name", ["train-00001-of-00002", "train-002.tar"])
def test_a_shard_that_is_a_broken_link_is_named(tmp_path, name):
    folder = (as_tars if name.endswith("tar") else as_tfrecords)(tmp_path / "sharded", images(6), images(4, 10))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("nowhere")
    assert f"cannot read {folder / name}" in refusal(folder)


def test_files_like_shards_that_are_of_no_split_are_told(tmp_path, capsys):
    folder = as_tars(tmp_path / "sharded", images(6), images(4, 10))
    shards.index(folder)
    assert "left out" not in capsys.readouterr().err
    for i in range(5):
        tar_shard(folder / f"training-{i}.tar", samples(images(1)))
    assert len(shards.index(folder).train) == 6
    text = capsys.readouterr().err
    assert "training-0.tar, training-1.tar, training-2.tar and 2 more" in " ".join(text.split())


def test_a_shard_beside_the_folders_of_splits_is_told_though_its_name_is_in_them_too(tmp_path, capsys):
    folder = as_tars(tmp_path / "sharded", images(6), images(4, 10))
    for split in ("train", "val"):
        (folder / split).mkdir()
        for path in folder.glob(f"{split}-*.tar"):
            path.rename(folder / split / path.name)
    tar_shard(folder / "train-000.tar", samples(images(1)))
    assert len(shards.index(folder).train) == 6
    assert "left out, being of no split by name and folder: train-000.tar" in " ".join(capsys.readouterr().err.split())


def test_a_shard_that_is_missing_of_those_that_are_numbered_is_named(tmp_path):
    folder = as_tfrecords(tmp_path / "sharded", images(6), images(4, 10))
    (folder / "train-00000-of-00002").unlink()
    assert "train-00000-of-00002 is missing: copy" in refusal(folder)


def test_check_lists_every_problem_of_every_shard(tmp_path):
    folder = as_tfrecords(tmp_path / "sharded", images(6), images(4, 10))
    tfrecord(folder / "train-00000-of-00002", [example(image=jpeg(1)) for _ in range(6)])
    tfrecord(folder / "train-00001-of-00002", [example(image=jpeg(i), label=i % 2) for i in range(3)])
    tfrecord(folder / "validation.tfrecords", [example(image=b"none", label=0), example(image=jpeg(9), label=1)])
    cut = folder / "train-00001-of-00002"
    cut.write_bytes(cut.read_bytes()[:-1])
    found = check(str(folder))
    assert [f"record {i} has no class" in line for i, line in enumerate(found[:6])] == [True] * 6
    assert "train-00001-of-00002 is damaged or cut short" in found[6]
    assert "validation.tfrecords, record 0 cannot be decoded" in found[7] and len(found) == 8
    assert len(check(str(folder))) == 8


def test_processes_index_what_one_does_and_name_what_it_would(tmp_path, monkeypatch):
    folder = as_tfrecords(tmp_path / "sharded", images(6), images(4, 10))
    expected = shards.index(folder)
    monkeypatch.setattr(shards, "MUCH", 0)
    for mine, one in zip(shards.index(folder).splits.values(), expected.splits.values(), strict=True):
        assert mine.names == one.names and mine.paths == one.paths
        assert all(np.array_equal(getattr(mine, name), getattr(one, name)) for name in PER_IMAGE)
    broken = folder / "train-00001-of-00002"
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    assert "train-00001-of-00002 is damaged" in refusal(folder)


def test_shards_of_one_split_only_or_without_samples_say_what_is_missing(tmp_path):
    folder = tmp_path / "sharded"
    tar_shard(folder / "train.tar", samples(images(4)))
    assert "has no shards of test images: expected names with test, val or validation in them" in refusal(folder)
    tar_shard(folder / "test.tar", [("notes.txt", b"")])
    assert "the test shards hold no images" in refusal(folder)
    (folder / "train.tar").unlink()
    assert "has no shards of train images" in refusal(folder)
