"""TFRecords are read without TensorFlow; whatever is not one is an error that names the byte, and never a crash."""

import gzip
import random

import pytest

from fastarat.common.errors import UserError
from fastarat.data.formats.crc32c import LANE, SHORT
from fastarat.data.formats.crc32c import crc32c as fast_crc32c
from fastarat.data.formats.tfrecord import masked_crc32c, records
from tests.helpers.shard_files import crc32c, example, part, tfrecord
from tests.helpers.small_sets import one_line

LIKE_IMAGENET = {
    "image__height": 3,
    "image__class__text": b"goldfish",
    "image__object__bbox__xmin": 0.5,
    "image__filename": b"n01443537_1.JPEG",
    "image__class__label": 2,
    "image__encoded": b"the bytes of an image",
    "image__format": b"JPEG",
}


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        list(records(path))
    text = one_line(error)
    assert str(path) in text
    return text


@pytest.mark.parametrize("packed", [True, False])
def test_image_and_label_of_every_record_are_found(tmp_path, packed):
    file = tfrecord(
        tmp_path / "a.tfrecord", [example(packed, **LIKE_IMAGENET), example(packed, image=b"xy", label=300)]
    )
    content, (first, second) = file.read_bytes(), list(records(file))
    assert first.image and second.image
    assert content[first.image] == b"the bytes of an image" and first.label == 2
    assert content[second.image] == b"xy" and second.label == 300 and second.start > first.image.stop


def test_what_a_record_lacks_is_none(tmp_path):
    examples = [
        example(label=3),
        example(image=b"xy"),
        example(label=-1, image=b"xy"),
        b"",
        example(image=4, label=b"x"),
    ]
    found = list(records(tfrecord(tmp_path / "a.tfrecord", examples)))
    assert [record.label for record in found] == [3, None, -1, None, None]
    assert [record.image is not None for record in found] == [False, True, True, False, False]


def test_the_checksum_is_the_published_one():
    # RFC 3720, B.4: CRC-32C of 32 bytes of zeros, of ones, and of 0 to 31; and the check value of its catalogues.
    published = {
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
        b"123456789": 0xE3069283,
    }
    for content, crc in published.items():
        assert crc32c(content) == crc
        assert masked_crc32c(content) == ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def test_the_checksum_of_long_contents_is_that_of_all_their_bytes():
    for length in (SHORT - 1, SHORT, SHORT + 1, 7 * LANE - 3, 11 * LANE, 5000):
        content = random.Random(length).randbytes(length)
        assert fast_crc32c(content) == crc32c(content)
        assert fast_crc32c(bytes(3) + content) == crc32c(bytes(3) + content)


def test_a_flipped_bit_anywhere_is_named_with_its_record(tmp_path):
    first = tfrecord(tmp_path / "a.tfrecord", [example(**LIKE_IMAGENET)]).read_bytes()
    file = tfrecord(tmp_path / "a.tfrecord", [example(**LIKE_IMAGENET), example(image=bytes(2 * SHORT), label=3)])
    whole = file.read_bytes()
    for at in (len(first) + 12, len(first) + 500, len(whole) - 5, len(whole) - 4, len(whole) - 1):
        spoiled = bytearray(whole)
        spoiled[at] ^= 1 << at % 8
        file.write_bytes(spoiled)
        assert f"a record's data has a wrong checksum at byte {len(first)}" in refusal(file)


def test_a_file_cut_anywhere_is_named(tmp_path):
    whole = tfrecord(tmp_path / "whole", [example(**LIKE_IMAGENET)] * 2).read_bytes()
    file = tmp_path / "cut.tfrecord"
    for length in range(1, len(whole)):
        file.write_bytes(whole[:length])
        if length == len(whole) // 2:
            assert len(list(records(file))) == 1  # between two records
        else:
            assert "cut short" in refusal(file) and "at byte" in refusal(file)


def test_random_bytes_never_do_worse_than_an_error(tmp_path):
    file = tmp_path / "random.tfrecord"
    for seed in range(50):
        file.write_bytes(random.Random(seed).randbytes(200))
        assert "a record's length has a wrong checksum at byte 0" in refusal(file)


def test_records_of_random_bytes_never_do_worse_than_an_error(tmp_path):
    good = example(**LIKE_IMAGENET)
    refused = 0
    for seed in range(300):
        chance = random.Random(seed)
        data = bytearray(chance.randbytes(100) if seed % 2 else good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            (record,) = records(tfrecord(tmp_path / "a.tfrecord", [bytes(data)]))
            assert record.image is None or 12 <= record.image.start <= record.image.stop <= 12 + len(data)
        except UserError as e:
            refused += "is damaged" in str(e)
    assert 100 < refused < 300


def test_a_length_that_leaves_its_record_is_an_error(tmp_path):
    inside = part(1, part(1, part(1, b"image") + part(2, b"\x0a\xff\xff\xff\xff\x0f")))
    assert "a value is longer than what it is in at byte" in refusal(tfrecord(tmp_path / "a.tfrecord", [inside]))


def test_an_empty_or_compressed_file_says_so(tmp_path):
    empty, packed = tmp_path / "empty.tfrecord", tmp_path / "packed.tfrecord"
    empty.touch()
    packed.write_bytes(gzip.compress(b"anything"))
    assert "is empty" in refusal(empty) and "is compressed" in refusal(packed)
    assert "does not exist" in refusal(tmp_path / "none.tfrecord")
