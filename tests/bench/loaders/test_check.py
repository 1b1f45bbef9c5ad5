"""The same images for all, and no speed for other pixels than PIL's."""

from dataclasses import replace

import numpy as np
import pytest

from bench.common.inputs import random_images
from bench.loaders import (
    check as loaders_check,
)
from bench.loaders import (
    feeds as loaders_feeds,
)
from bench.loaders.check import MOST_KEPT, differences
from fastarat.data.formats.find import find
from fastarat.data.images.decoding import pixels_of
from tests.helpers.loaders import case
from tests.helpers.optional import each_loader, needs_dali, needs_ffcv


def test_every_form_holds_the_same_images_in_the_same_order(small, photos):
    for stores, count in ((small, 3), (photos, 2)):
        sets = {shape: find(str(path)).open_stored().train for shape, path in stores.paths.items()}
        assert len(sets) == count
        reference = find(str(stores.reference)).open_stored().train
        for shape, images in sets.items():
            np.testing.assert_array_equal(images.labels, reference.labels)
            for i in range(len(images)):
                size = tuple(map(int, images.sizes[i]))
                box = np.array([0, 0, *size])
                right = pixels_of(reference.file(i), box, size)
                np.testing.assert_array_equal(pixels_of(images.file(i), box, size), right, err_msg=str(shape))
    jpegs = [find(str(path)).open_stored().train for path in photos.paths.values()]
    assert all(jpegs[0].read(i) == jpegs[1].read(i) for i in range(len(jpegs[0]))), "a JPEG was encoded anew"


def test_random_pixels_keep_their_labels(small):
    dataset, images = random_images("cifar10", 40).decoded_train, find(str(small.reference)).open_stored().train
    label_of = {pixels.tobytes(): label for pixels, label in zip(dataset.images, dataset.labels, strict=True)}
    assert [label_of[images.read(i)] for i in range(40)] == list(images.labels)


@pytest.mark.parametrize(
    ("loader", "stored"),
    [
        *(("resident", "raw"), ("plain", "raw"), ("plain", "png")),
        pytest.param("ffcv", "raw", marks=needs_ffcv),
        pytest.param("dali", "png", marks=needs_dali),
    ],
)
def test_pixels_without_loss_are_exact(of_small, loader, stored):
    found = differences(case(of_small, loader, stored))
    assert found.exact == 0 and found.problem is None


@pytest.mark.parametrize("loader", each_loader("plain", "ffcv", "dali"))
def test_jpegs_differ_by_decoder_and_filter_alone(of_photos, loader):
    found = differences(case(of_photos, loader, "jpeg"))
    assert found.problem is None and found.exact is None
    assert found.kept is not None and found.resized is not None
    assert (found.kept == 0) == (loader != "ffcv"), "FFCV takes libjpeg's faster ways"


class Wrong:
    """A decoder that gives pixels which another has spoiled."""

    def __init__(self, decoder, spoil):
        self.decoder, self.spoil = decoder, spoil

    def decode(self, requests):
        return (self.spoil(pixels) for pixels in self.decoder.decode(requests))

    def close(self):
        self.decoder.close()


SPOILS = {
    "one level": lambda pixels: pixels ^ 1,
    "one pixel to the side": lambda pixels: pixels.roll(1, 2),
    "mirrored": lambda pixels: pixels.flip(2),
    "two images swapped": lambda pixels: pixels.roll(1, 0),
    "blue for red": lambda pixels: pixels.flip(3),
}


def spoiled(monkeypatch, spoil):
    build = loaders_feeds.build_decoder
    monkeypatch.setattr(loaders_feeds, "build_decoder", lambda *given, **where: Wrong(build(*given, **where), spoil))


@pytest.mark.parametrize("name", SPOILS)
def test_any_other_pixels_are_wrong(of_small, of_photos, name, monkeypatch):
    spoiled(monkeypatch, SPOILS[name])
    problem = differences(case(of_small, "plain", "raw")).problem
    assert problem is not None and problem.startswith("WRONG: pixels differ by up to")
    if name != "one level":
        problem = differences(case(of_photos, "plain", "jpeg")).problem
        assert problem is not None and "from PIL's" in problem and f"allowed: {MOST_KEPT:g}" in problem


def test_another_shape_other_labels_or_no_batch_are_wrong(of_small, of_photos, monkeypatch):
    form = case(of_small, "plain", "raw")
    with pytest.raises(ValueError, match="WRONG: labels are not those of the files"):
        differences(replace(form, reference=case(of_photos, "plain", "jpeg").path))
    spoiled(monkeypatch, lambda pixels: pixels[:, :-1])
    with pytest.raises(ValueError, match=r"WRONG: a batch is torch.uint8 \(16, 31, 32, 3\)"):
        differences(form)
    with pytest.raises(ValueError, match="WRONG: there is no batch"):
        loaders_check._compare(iter(()), form.images())
