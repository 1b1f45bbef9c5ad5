"""Which loader a run takes: what fits stays on the device, else the fastest that reads the data; said why."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastarat.common.errors import UserError
from fastarat.config import Config
from fastarat.config.data import AugmentConfig, LoadingConfig
from fastarat.data.formats.beton.storage import Storage
from fastarat.data.formats.prepared import write
from fastarat.data.images.dataset import from_splits
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading import choose
from fastarat.data.loading.build import build_decoder
from fastarat.data.loading.choose import Opened, open_for_training
from fastarat.data.loading.decoders.plain import PlainDecoder
from fastarat.data.open import build, open_dataset, prepare
from fastarat.data.tools.check import check
from tests.helpers.optional import each_loader, needs_dali, needs_ffcv
from tests.helpers.shard_files import samples, tar_shard
from tests.helpers.small_sets import jpeg, one_line, pack

CPU = torch.device("cpu")
RESIZED = AugmentConfig(crop="resized")


def opened(data, loader="auto", size=None, augment=None, corrupt="fatal", procs=0) -> Opened:
    parts = {"augment": augment or AugmentConfig(), "loading": LoadingConfig(corrupt=corrupt)}
    return open_for_training(Config(data=str(data), loader=loader, size=size, procs=procs, **parts), CPU)


def refusal(*args, **settings) -> str:
    with pytest.raises(UserError) as error:
        opened(*args, **settings)
    return one_line(error)


@pytest.fixture
def forms(photos, tmp_path):
    """The same photographs in every form."""
    build(str(photos), tmp_path / "photos.beton", Storage("raw"))
    prepare(str(photos), tmp_path / "prepared")
    for split in ("train", "val"):
        tar_shard(tmp_path / "shards" / f"{split}-0.tar", samples([(jpeg(i), i % 2) for i in range(4)]))
    return {
        "folder": photos,
        "tar": pack(photos, tmp_path / "photos.tar", "w"),
        "compressed": pack(photos, tmp_path / "photos.tar.gz", "w:gz"),
        "beton": tmp_path / "photos.beton",
        "prepared": tmp_path / "prepared",
        "shards": tmp_path / "shards",
    }


@pytest.fixture
def no_room(monkeypatch):
    monkeypatch.setattr(choose, "RESIDENT_SHARE", 0.0)


def test_a_prepared_set_that_is_not_rgb_is_resident(tmp_path):
    prepare("digits", tmp_path / "digits")
    found = opened(tmp_path / "digits")
    assert found.loader == "resident" and len(found.dataset.train.labels) == 1437
    assert "has no 8-bit RGB images: use the resident loader" in refusal(tmp_path / "digits", "plain")


def test_what_fits_is_resident_however_it_is_stored(forms):
    found = {form: opened(path) for form, path in forms.items()}
    assert {form: one.loader for form, one in found.items()} == dict.fromkeys(forms, "resident")
    assert all("stay on the device" in one.why for one in found.values())
    images = found["folder"].dataset.decoded_train.images
    for form in set(forms) - {"shards"}:
        assert np.array_equal(found[form].dataset.decoded_train.images, images)
        assert found[form].dataset.fingerprint == found["folder"].dataset.fingerprint


def test_every_process_keeps_the_pixels_on_a_cpu(forms, monkeypatch):
    num_bytes = len(opened(forms["folder"]).dataset.train.labels) * 12 * 12 * 3
    monkeypatch.setattr(choose, "usable_memory", lambda: 8 * num_bytes)  # a quarter of it is two times the pixels
    found = [opened(forms["prepared"], procs=procs) for procs in (0, 2, 4)]
    assert [one.loader for one in found] == ["resident", "resident", "plain"]
    assert "of pixels in each of 4 processes are more than a quarter of memory" in found[-1].why


@needs_dali
@needs_ffcv
def test_what_does_not_fit_goes_to_the_loader_made_for_it(forms, no_room):
    wanted = {"folder": "dali", "tar": "dali", "shards": "dali", "beton": "ffcv", "prepared": "plain"}
    for form, loader in wanted.items():
        found = opened(forms[form])
        assert found.loader == loader and "are more than a quarter of memory" in found.why
        assert isinstance(found.dataset.train, StoredImages)
        assert found.dataset.test.images.shape[1:] == (12, 12, 3)


def test_without_the_package_it_goes_to_the_plain_one_and_says_what_to_install(forms, no_room, monkeypatch):
    monkeypatch.setattr(choose, "is_installed", lambda loader: loader == "plain")
    for form, package in {"folder": "dali", "beton": "ffcv"}.items():
        found = opened(forms[form])
        assert found.loader == "plain" and f"pip install 'fastarat[{package}]'" in found.why


def test_what_is_decoded_already_and_does_not_fit_has_a_way_out(forms, no_room):
    text = refusal(forms["compressed"])
    assert "are more than a quarter of memory" in text and "fastarat data prepare" in text
    assert "fastarat data prepare digits OUT" in refusal("digits")


@needs_dali
def test_resized_crops_are_streamed_even_if_the_images_would_fit(forms):
    found = opened(forms["folder"], size=8, augment=RESIZED)
    assert found.loader == "dali" and "resized crops" in found.why
    assert found.dataset.image_shape == (8, 8, 3)
    assert "resized crops need images as they are stored" in refusal("digits", size=8, augment=RESIZED)


@needs_dali
@needs_ffcv
def test_a_loader_asked_for_by_name_is_taken_or_refused(forms, monkeypatch):
    assert opened(forms["folder"], "plain").loader == "plain"
    assert opened(forms["beton"], "plain").loader == "plain"
    assert opened(forms["beton"], "ffcv").loader == "ffcv"
    assert opened(forms["shards"], "dali").loader == "dali"
    assert "'fastarat data build" in refusal(forms["folder"], "ffcv")
    assert "DALI reads image files and shards" in refusal(forms["beton"], "dali")
    assert "is compressed" in refusal(forms["compressed"], "dali")
    assert "not in files of their own" in refusal("digits", "plain")
    monkeypatch.setattr(choose, "is_installed", lambda loader: loader == "plain")
    assert "pip install 'fastarat[ffcv]'" in refusal(forms["beton"], "ffcv")
    assert "pip install 'fastarat[dali]'" in refusal(forms["folder"], "dali")


def test_a_decoder_that_only_knows_the_cpu_takes_over_from_one_that_decoded_on_a_gpu(forms):
    """An analysis without a GPU, or without DALI, reads the images of such a run."""
    train = opened(forms["folder"], "plain").dataset.train
    decoder = build_decoder("plain", train, LoadingConfig(decode="gpu"), num_processes=1, device=CPU)
    assert isinstance(decoder, PlainDecoder)


def test_corrupt_images_are_left_out_for_every_loader_that_is_told_so(photos, no_room):
    (photos / "train/cat/1.jpg").write_bytes(b"no image")
    assert "train/cat/1.jpg cannot be decoded" in refusal(photos)
    found = opened(photos, corrupt="skip")
    assert found.dataset.num_skipped == 1 and len(found.dataset.train.labels) == 5


def test_so_they_are_for_the_resident_one(photos):
    (photos / "train/cat/1.jpg").write_bytes(b"no image")
    found = opened(photos, corrupt="skip")
    assert found.loader == "resident" and found.dataset.num_skipped == 1 and len(found.dataset.train.labels) == 5


@pytest.mark.parametrize("loader", each_loader("auto", "dali", "plain", "resident"))
def test_a_folder_without_classes_is_refused(tmp_path, loader):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_bytes(jpeg(0))
    assert "no train folder with classes in it" in refusal(tmp_path / "pictures", loader)


@pytest.fixture
def of_one_class(photos, tmp_path):
    """A set of cats alone in every form that there can be one in."""
    cats = open_dataset(str(photos))
    parts = [replace(split, labels=split.labels * 0) for split in (cats.decoded_train, cats.decoded_test)]
    write(from_splits("cats", *parts, ("cat",)), tmp_path / "prepared", "test")
    build(str(tmp_path / "prepared"), tmp_path / "cats.beton", Storage("raw"))
    np.savez(tmp_path / "cats.npz", images=parts[0].images, labels=parts[0].labels)
    for split, first in (("train", 0), ("val", 4)):
        tar_shard(tmp_path / "shards" / f"{split}-0.tar", samples([(jpeg(first + i), 0) for i in range(4)]))
    for split in ("train", "test"):
        shutil.rmtree(photos / split / "dog")
    return [
        photos,
        pack(photos, tmp_path / "photos.tar", "w"),
        *(tmp_path / name for name in ("prepared", "cats.beton", "cats.npz", "shards")),
    ]


def test_a_set_of_one_class_is_a_problem_and_no_training(of_one_class):
    for path in of_one_class:
        assert check(str(path)) == ["one class: nothing to classify, give two or more"], path
        assert "one class: nothing to classify, give two or more" in refusal(path)
