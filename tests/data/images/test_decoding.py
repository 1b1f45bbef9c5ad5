"""Pillow's own words never stand between fastarat's lines; what it refuses is one line with the image's name."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from fastarat.data.formats.beton.storage import Storage, record
from fastarat.data.images.decoding import Decoded, File, decode, pixels_of
from tests.helpers.small_sets import jpeg


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def decoded(content: bytes) -> Decoded:
    return decode(File("train/cat/1.png", content), (12, 12), resize=True, share=1.0)


@pytest.fixture
def palette() -> bytes:
    """An image of a palette with transparency, of which Pillow warns."""
    image = Image.open(io.BytesIO(jpeg(0))).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    return saved(image, transparency=bytes(range(16)))


def test_transparency_is_left_out_without_a_word(palette, capfd):
    with pytest.warns(UserWarning, match="Transparency"):
        wanted = np.asarray(Image.open(io.BytesIO(palette)).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        file = File("p.png", palette)
        assert np.array_equal(decoded(palette).pixels, wanted)
        assert np.array_equal(pixels_of(file, np.array([0, 0, 12, 12]), (12, 12)), wanted)
        assert record(file, Storage("raw")).content == wanted.tobytes()
    assert capfd.readouterr() == ("", "")


def test_an_image_that_may_be_a_bomb_is_one_line_with_the_way_out(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    large = decoded(jpeg(0, 20, 20, kind="PNG"))
    assert large.problem is not None and large.problem.startswith("train/cat/1.png cannot be decoded (")
    assert large.problem.endswith("exceeds limit of 200 pixels: shrink it)") and "\n" not in large.problem


def test_an_image_that_is_only_nearly_too_large_is_decoded_without_a_word(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decoded(jpeg(0, 12, 12, kind="PNG")).problem is None
    assert not recwarn.list
