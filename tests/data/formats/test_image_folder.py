"""An image folder, or a tar of one, is decoded once; everything wrong with it is named in one line."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastarat.common.errors import UserError, WorkError
from fastarat.data.formats import archives as entries
from fastarat.data.images import pool
from fastarat.data.open import open_dataset, prepare
from tests.helpers.small_sets import jpeg, one_line, pack, pixels, png_of_16_bits


def refusal(source, size=None) -> str:
    with pytest.raises(UserError) as error:
        open_dataset(str(source), size)
    return one_line(error)


def test_a_folder_of_images_opens_as_a_data_set(photos):
    dataset = open_dataset(str(photos))
    assert dataset.name == "photos" and dataset.classes == ("cat", "dog") and dataset.max_value == 255
    assert dataset.train.images.shape == (6, 12, 12, 3) and dataset.test.images.shape == (4, 12, 12, 3)
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    second_dog = pixels((photos / "train/dog/1.jpg").read_bytes())
    assert np.array_equal(dataset.train.images[4], second_dog)


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz")])
def test_a_tar_gives_the_same_set_as_its_folder(photos, tmp_path, suffix, mode):
    archive = pack(photos, tmp_path / f"packed{suffix}", mode)
    assert open_dataset(str(archive)).fingerprint == open_dataset(str(photos)).fingerprint


def test_a_tar_may_hold_one_top_folder_and_call_its_test_split_val(photos, tmp_path):
    expected = open_dataset(str(photos)).fingerprint
    (photos / "test").rename(photos / "val")
    for top in ("photos-12/", "./"):
        archive = pack(photos, tmp_path / "packed.tar", "w", top)
        assert open_dataset(str(archive)).fingerprint == expected


def test_images_are_decoded_once_and_again_only_when_they_change(photos, root, capsys):
    open_dataset(str(photos))
    assert "decoded" in capsys.readouterr().err
    open_dataset(str(photos))
    assert capsys.readouterr().err == ""
    (photos / "train/cat/9.png").write_bytes(jpeg(9, kind="PNG"))
    assert len(open_dataset(str(photos)).train.labels) == 7
    assert len(list((root / "prepared").iterdir())) == 2


def test_many_images_are_decoded_by_several_processes(photos, monkeypatch):
    expected = open_dataset(str(photos)).fingerprint
    monkeypatch.setattr(pool, "BATCH", 1)
    monkeypatch.setattr(pool, "num_cores", lambda: 2)
    shutil.copytree(photos, photos.with_name("again"))
    assert open_dataset(str(photos.with_name("again"))).fingerprint == expected


def test_a_decoding_process_that_dies_is_one_line(photos, monkeypatch):
    monkeypatch.setattr(pool, "BATCH", 1)
    monkeypatch.setattr(pool, "num_cores", lambda: 2)
    monkeypatch.setattr(pool, "live_with_parent", pool.os.abort)
    with pytest.raises(WorkError) as error:
        open_dataset(str(photos))
    assert "process that works on images died" in one_line(error)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_colour_mode_becomes_rgb(photos, mode):
    (photos / "train/cat/0.jpg").write_bytes(jpeg(1, mode=mode))
    assert open_dataset(str(photos)).train.images.shape == (6, 12, 12, 3)


def test_a_palette_image_becomes_rgb(photos):
    (photos / "train/cat/palette.png").write_bytes(jpeg(1, mode="P", kind="PNG"))
    assert open_dataset(str(photos)).train.images.shape == (7, 12, 12, 3)


def test_images_of_many_sizes_need_a_size(photos):
    (photos / "train/cat/0.jpg").write_bytes(jpeg(1, width=20, height=16))
    text = refusal(photos)
    assert "images differ in size (from 12x12 to 20x16): 'fastarat train --size 128' brings them to one" in text
    assert f"fastarat data prepare {photos} OUT --size 128" in text


def test_a_size_crops_the_middle_of_the_longer_side(photos):
    stripes = Image.new("RGB", (30, 10))
    stripes.paste((255, 0, 0), (10, 0, 20, 10))
    stripes.save(photos / "train/cat/0.png")
    dataset = open_dataset(str(photos), size=10)
    assert dataset.train.images.shape == (7, 10, 10, 3)
    assert (dataset.train.images[1] == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_is_a_number_of_pixels(photos, size):
    assert f"--size {size}: give the number of pixels" in refusal(photos, size)


def test_corrupt_images_are_counted_and_the_first_named(photos):
    whole = (photos / "train/cat/0.jpg").read_bytes()
    for i, name in enumerate(("train/cat/0.jpg", "train/cat/1.jpg", "train/dog/0.jpg", "test/dog/1.jpg")):
        (photos / name).write_bytes(whole[: len(whole) // 2 + i])
    text = refusal(photos)
    assert "test/dog/1.jpg cannot be decoded (" in text and "runcated" in text
    assert "and 1 more" in text and f"fastarat data check {photos}" in text
    assert text.endswith("; 'fastarat train --loading.corrupt skip' leaves such images out")
    assert "--loading.corrupt" not in refusal(pack(photos, photos.with_name("photos.tar.gz"), "w:gz"))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "zero bytes"), (b"<html>not found</html>", "not a JPEG or PNG image")]
)
def test_what_is_no_image_is_named(photos, content, reason):
    for path in photos.rglob("*.jpg"):
        path.write_bytes(content)
    assert f"test/cat/0.jpg cannot be decoded ({reason})" in refusal(photos)


def test_16_bit_images_are_refused_rather_than_clipped(photos):
    Image.fromarray(np.full((12, 12), 40_000, np.uint16)).save(photos / "train/cat/deep.png")
    assert "train/cat/deep.png cannot be decoded (more than 8 bits a channel" in refusal(photos)


@pytest.mark.parametrize(("colours", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "grey and alpha", "RGBA"])
def test_16_bit_colours_which_pillow_opens_as_8_are_refused_too(photos, colours, channels):
    (photos / "train/cat/deep.png").write_bytes(png_of_16_bits(colours, channels))
    assert "train/cat/deep.png cannot be decoded (more than 8 bits a channel" in refusal(photos)


def test_an_empty_class_folder_is_named(photos):
    for path in (photos / "test/dog").iterdir():
        path.unlink()
    assert "empty class folder test/dog" in refusal(photos)


@pytest.mark.parametrize("name", ["readme.txt", "train/cat/notes.txt", "train/loose.jpg", "train/cat/deep/0.jpg"])
def test_a_stray_file_is_named(photos, name):
    (photos / name).parent.mkdir(exist_ok=True)
    (photos / name).write_bytes(jpeg(1))
    assert "stray" in refusal(photos) and name.removesuffix("/0.jpg") in refusal(photos)


def test_a_class_of_one_split_only_is_named(photos):
    (photos / "test/dog").rename(photos / "test/wolf")
    text = refusal(photos)
    assert "class 'dog' is in train but not in test" in text
    assert "class 'wolf' is in test but not in train" in text


def test_both_splits_are_needed(photos):
    shutil.move(photos / "test", photos.with_name("aside"))
    assert "no test or val folder" in refusal(photos)
    (photos / "train").rename(photos / "test")
    (photos / "readme.txt").touch()
    text = refusal(photos)
    assert "no train folder" in text and "stray" not in text


def test_test_and_val_together_are_ambiguous(photos):
    shutil.copytree(photos / "test", photos / "val")
    assert "both a test and a val folder" in refusal(photos)


def test_a_folder_that_cannot_be_read_is_named(photos, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(entries.os, "scandir", refuse)
    assert refusal(photos) == f"cannot read {photos}: Permission denied"


def test_a_broken_link_is_named(photos):
    (photos / "train/cat/lost.jpg").symlink_to("nowhere.jpg")
    assert "train/cat/lost.jpg: No such file or directory" in refusal(photos)


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz")])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_archive_is_named(photos, tmp_path, suffix, mode, kept):
    archive = pack(photos, tmp_path / f"packed{suffix}", mode)
    content = archive.read_bytes()
    # A plain tar ends with up to 10 KiB of padding that it can do without.
    archive.write_bytes(content[: int(kept * (len(content) - (10_240 if suffix == ".tar" else 0)))])
    assert f"packed{suffix} is damaged or cut short" in refusal(archive)


def test_an_archive_cut_between_two_files_is_noticed(photos, tmp_path):
    archive = pack(photos, tmp_path / "packed.tar", "w")
    with tarfile.open(archive) as tar:
        boundary = tar.getmembers()[-1].offset
    archive.write_bytes(archive.read_bytes()[:boundary])
    assert "its end is missing" in refusal(archive)


def test_a_file_that_is_no_archive_is_named(tmp_path):
    (tmp_path / "page.tar").write_bytes(b"<html>" * 500)
    assert "page.tar is damaged or cut short" in refusal(tmp_path / "page.tar")


def test_links_and_paths_out_of_an_archive_are_strays(photos, tmp_path):
    archive = pack(photos, tmp_path / "packed.tar", "w")
    for name, kind in (("train/cat/link.jpg", tarfile.SYMTYPE), ("../escape.jpg", tarfile.REGTYPE)):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        with tarfile.open(archive, "a") as tar:
            tar.addfile(member, io.BytesIO())
    text = refusal(archive)
    assert "stray link train/cat/link.jpg" in text and "stray file ../escape.jpg" in text
    assert not (tmp_path.parent / "escape.jpg").exists()


def test_an_image_that_is_in_an_archive_twice_is_named(photos, tmp_path):
    archive = pack(photos, tmp_path / "packed.tar", "w")
    with tarfile.open(archive, "a") as tar:
        tar.add(photos / "train/cat/0.jpg", arcname="train/cat/0.jpg")
    assert "train/cat/0.jpg is there twice" in refusal(archive)


def test_a_failed_prepare_leaves_nothing_behind(photos, tmp_path):
    (photos / "train/cat/0.jpg").write_bytes(b"")
    with pytest.raises(UserError):
        prepare(str(photos), tmp_path / "out" / "set")
    assert list((tmp_path / "out").iterdir()) == []


def test_photographs_of_many_sizes_are_prepared_at_one(shared, tmp_path):
    dataset = prepare(str(shared("photos-320.tar")), tmp_path / "photos", size=64)
    assert dataset.name == "photos-320" and dataset.classes == ("ants", "bees")
    assert len(dataset.train.labels) + len(dataset.test.labels) == 396
    assert dataset.train.images.shape[1:] == (64, 64, 3)


@pytest.mark.slow
def test_all_cifar10_jpegs_are_decoded(shared, tmp_path):
    dataset = prepare(str(shared("cifar10-jpeg.tar.xz")), tmp_path / "cifar")
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == [5_000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1_000] * 10
