"""A .beton is compared with its size, its seal and itself before anything native sees it; each fault is one line."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastarat.data.formats.beton import file as beton
from fastarat.data.formats.beton import seal as beton_seal
from fastarat.data.formats.beton.structure import ENTRY, FIELD, HEADER, JPEG, RAW
from tests.helpers.beton_sets import (
    STRUCTS,
    built,
    change_seal,
    folder_contents,
    patch,
    patch_struct,
    pixel_contents,
    refusal,
    reopened,
    unsealed,
)
from tests.helpers.small_sets import jpeg


@pytest.fixture
def whole(tmp_path) -> Path:
    return built(pixel_contents(), tmp_path / "set.beton", mode="raw")


def resealed(path: Path) -> Path:
    """With a seal of the right size, so that the fault has to be found elsewhere."""
    change_seal(path, bytes=path.stat().st_size)
    return path


def patch_header(path: Path, **values: int) -> None:
    header = np.fromfile(path, HEADER, 1)
    for name, value in values.items():
        header[name] = value
    patch(path, 0, header.tobytes())


def patch_entry(path: Path, i: int, **values: int) -> None:
    position = int(np.fromfile(path, HEADER, 1)["table"][0]) + i * ENTRY.itemsize
    row = np.fromfile(path, ENTRY, 1, offset=position)
    for name, value in values.items():
        row[name] = value
    patch(path, position, row.tobytes())


def cut(path: Path, length: int) -> None:
    os.truncate(path, length)


def start_of(path: Path, i: int) -> int:
    return int(reopened(path).train.offsets[i])


MANY = 2**64 - 1
FAULTS = {
    "empty": (lambda p: cut(p, 0), "is empty"),
    "a few bytes": (lambda p: cut(p, 10), "has 10 bytes, which is no .beton"),
    "random bytes": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(100_000)), "is no .beton of format 2"),
    "future": (lambda p: patch_header(p, version=3), "is no .beton of format 2 but says 3"),
    "half": (lambda p: cut(p, p.stat().st_size // 2), "damaged or cut short"),
    "end missing": (lambda p: cut(p, p.stat().st_size - 1024), "damaged or cut short"),
    "an entry missing": (lambda p: cut(p, p.stat().st_size - ENTRY.itemsize), "damaged or cut short"),
    "too many images": (lambda p: patch_header(p, num_samples=MANY), "damaged or cut short"),
    "no images": (lambda p: patch_header(p, num_samples=0), "damaged or cut short"),
    "table far away": (lambda p: patch_header(p, table=MANY), "damaged or cut short"),
    "table in the header": (lambda p: patch_header(p, table=8), "damaged or cut short"),
    "too many fields": (lambda p: patch_header(p, num_fields=65535), "65535 fields"),
    "odd page": (lambda p: patch_header(p, page_size=3 << 20), "a page size of 3145728"),
    "no page": (lambda p: patch_header(p, page_size=0), "a page size of 0"),
    "foreign field": (lambda p: patch(p, HEADER.itemsize, b"\x04"), "a field 'image' of type 4"),
    "field of floats": (lambda p: patch(p, HEADER.itemsize, b"\x00"), "one of images and a whole 'label'"),
    "field twice": (lambda p: patch(p, HEADER.itemsize + 2 * FIELD.itemsize + 1, b"label"), "two fields of one name"),
    "pointer to the header": (
        lambda p: patch_struct(p, 2, "image", start=0),
        "train image 2 of set.beton lies outside",
    ),
    "both to the header": (
        lambda p: (patch_struct(p, 2, "image", start=0), patch_entry(p, 2, start=0)),
        "train image 2 of set.beton lies outside",
    ),
    "both beyond the end": (
        lambda p: (patch_struct(p, 2, "image", start=MANY - 5), patch_entry(p, 2, start=MANY - 5)),
        "train image 2 of set.beton lies outside",
    ),
    "endless": (lambda p: patch_entry(p, 2, length=MANY), "train image 2 of set.beton lies outside"),
    "into the next image": (lambda p: patch_entry(p, 2, length=12 * 12 * 3 + 1), "overlaps another"),
    "too short": (lambda p: patch_entry(p, 2, length=12 * 12 * 3 - 1), "more or fewer bytes than pixels"),
    "wider than its bytes": (lambda p: patch_struct(p, 2, "image", width=13), "more or fewer bytes than pixels"),
    "without pixels": (lambda p: patch_struct(p, 7, "image", height=0), "test image 1 of set.beton has no pixels"),
    "of no kind": (lambda p: patch_struct(p, 2, "image", mode=7), "neither raw nor JPEG"),
    "twice in the table": (lambda p: patch_entry(p, 2, image=3), "does not name each image once"),
    "unknown in the table": (lambda p: patch_entry(p, 2, image=10), "does not name each image once"),
    "negative label": (lambda p: patch_struct(p, 2, "label", value=-1), "label -1 of image 2"),
    "huge label": (lambda p: patch_struct(p, 2, "label", value=70000), "label 70000 of image 2"),
    "third split": (lambda p: patch_struct(p, 2, "split", value=2), "the split of image 2 is 2"),
    "negative split": (lambda p: patch_struct(p, 2, "split", value=-1), "the split of image 2 is -1"),
    "no training images": (
        lambda p: [patch_struct(p, i, "split", value=1) for i in range(6)],
        "has no training images",
    ),
}


@pytest.mark.parametrize("with_seal", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_structure_is_named_and_the_fix(whole, fault, with_seal):
    damage, message = FAULTS[fault]
    damage(whole)
    text = refusal(resealed(whole) if with_seal else unsealed(whole))
    assert str(whole) in text and "fastarat data build SRC OUT.beton" in text
    if not (with_seal and fault in ("huge label", "no training images")):  # what the seal says about them is told first
        assert message in text


def test_a_file_of_another_length_than_its_seal_says_is_refused_at_once(whole):
    cut(whole, 1000)
    assert "has 1000 bytes instead of" in refusal(whole)


def test_a_second_half_of_zeros_is_refused(photographs):
    size = photographs.stat().st_size
    patch(photographs, size // 2, bytes(size - size // 2))
    assert "does not name each image once" in refusal(photographs)


def test_an_image_that_crosses_a_page_is_refused(tmp_path):
    path = unsealed(built(pixel_contents(30, 4, 160), tmp_path / "set.beton", mode="raw"))
    page, starts = 1 << 21, reopened(path).train.offsets
    last = int(np.flatnonzero(starts // page != starts[0] // page)[0]) - 1
    moved = (int(starts[0]) // page + 1) * page - 100
    patch_struct(path, last, "image", start=moved)
    patch_entry(path, last, start=moved)
    assert f"train image {last} of set.beton crosses a page's end" in refusal(path)


def test_one_flipped_bit_anywhere_is_refused(whole, photographs):
    for path in (whole, photographs):
        content = path.read_bytes()
        for position in (2000, start_of(path, 3) + 200, STRUCTS + 20 * 32 + 5000):
            patch(path, position, bytes([content[position] ^ 1]))
            text = refusal(path)
            assert "SHA-256 differs" in text and f"'fastarat data check {path}' names the bad images" in text
            path.write_bytes(content)
        reopened(path)


def test_a_checked_file_opens_again_without_being_read(whole, monkeypatch):
    reopened(whole)
    monkeypatch.setattr(beton_seal, "sha256_of", lambda path: pytest.fail("it was read again"))
    reopened(whole)


def test_a_file_that_changed_is_checked_again(whole):
    reopened(whole)
    patch(whole, start_of(whole, 2), b"other")
    assert "SHA-256 differs" in refusal(whole)
    assert "SHA-256 differs" in refusal(whole)


def test_where_nothing_can_be_remembered_the_file_is_checked_each_time(whole, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTARAT_DATA", str(tmp_path / "file"))
    calls, real = [], beton_seal.sha256_of
    monkeypatch.setattr(beton_seal, "sha256_of", lambda path: calls.append(path) or real(path))
    for _ in range(2):
        beton.read(whole)
    assert len(calls) == 2


def test_a_file_without_seal_opens_with_numbered_classes_and_a_notice(whole, capsys):
    data = reopened(unsealed(whole))
    assert data.classes == ("0", "1", "2") and data.name == "set"
    assert len(data.train) == 6 and len(data.test) == 4
    assert "its structure is checked, its contents are not" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("content", [b"\x00\x00", b"\xff\xd8\x00\x00"])
def test_a_jpeg_that_does_not_begin_as_one_is_refused(photographs, content):
    patch(photographs, start_of(photographs, 3), content)
    assert "train image 3 of photos.beton" in refusal(unsealed(photographs))


def test_a_jpeg_of_another_size_than_the_file_says_is_refused(photographs):
    patch_struct(photographs, 3, "image", width=13)
    assert "train image 3 of photos.beton is a JPEG of 12x12 RGB, not 13x12" in refusal(unsealed(photographs))


def test_a_jpeg_passed_off_as_pixels_is_refused(photographs):
    patch_struct(photographs, 3, "image", mode=RAW)
    assert "more or fewer bytes than pixels" in refusal(unsealed(photographs))
    assert JPEG != RAW


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 2}', '{"version": "x"}', '{"version": 2, "name": 3, "odd": 4}']
)
def test_a_damaged_seal_is_named(whole, text):
    beton_seal.place_of(whole).write_text(text)
    assert f"{whole}.json cannot be read" in refusal(whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 1}, "has format 1, and this fastarat reads 2"),
        ({"crc32": "00"}, "cannot be read"),
        ({"counts": {"train": 7, "test": 3}}, "has other images than"),
        ({"classes": ["a"]}, "label 1 of image 1 is not in 0 … 0"),
        *[({"classes": classes}, "cannot be read") for classes in ([], 5, "abc", [1, 2, 3], ["x"] * 2**17)],
        *[({"max_value": value}, "cannot be read") for value in (0, 256, 255.0, "255", None, 10**18)],
        *[({"counts": value}, "cannot be read") for value in (5, [6, 4], {"train": "6", "test": "4"})],
        *[({name: value}, "cannot be read") for name in ("sha256", "crc32", "name") for value in (5, None, ["x"])],
        ({"bytes": "x"}, "cannot be read"),
        ({"more": 1}, "cannot be read"),
    ],
)
def test_a_seal_that_does_not_fit_is_refused(whole, values, message):
    change_seal(whole, **values)
    assert message in refusal(whole)


@pytest.mark.parametrize(("old", "new"), [('"a"', '"A"'), ('"raw"', '"rww"'), ("noise", "Noise"), ('"b"', '"a"')])
def test_a_seal_that_changed_is_refused(whole, old, new):
    place = beton_seal.place_of(whole)
    text = place.read_text()
    assert old in text
    place.write_text(text.replace(old, new, 1))
    assert "set.beton.json cannot be read (it has changed since it was written): copy it again" in refusal(whole)


def test_a_copy_elsewhere_is_checked_for_itself(whole, tmp_path):
    reopened(whole)
    copy = tmp_path / "copy.beton"
    shutil.copy2(whole, copy)
    shutil.copy2(beton_seal.place_of(whole), beton_seal.place_of(copy))
    patch(copy, start_of(whole, 0), b"x")
    assert "SHA-256 differs" in refusal(copy)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "none.beton does not exist" in refusal(tmp_path / "none.beton")


def test_a_photo_keeps_its_size_and_label(photos, tmp_path):
    (photos / "train/dog/9.jpg").write_bytes(jpeg(9, 31, 17))
    data = reopened(built(folder_contents(photos), tmp_path / "p.beton", mode="jpeg"))
    assert data.train.sizes[6].tolist() == [31, 17] and data.train.labels[6] == 1
