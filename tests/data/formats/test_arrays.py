"""An .npz file of images and labels is a data set without test images."""

import io
import zipfile

import numpy as np
import pytest

from fastarat.__main__ import main
from fastarat.common import arrays
from fastarat.common.arrays import read_npz
from fastarat.common.errors import UserError
from fastarat.config.data import ExtraConfig
from fastarat.data.loading.extra import open_extra
from fastarat.data.open import open_dataset, prepare
from tests.helpers.mutants import FEW, MANY, memory_of, outcomes

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("images", "labels")])
def test_images_and_labels_are_its_training_split(tmp_path, image, label):
    np.savez(tmp_path / "made.npz", **{image: IMAGES, label: LABELS.astype(np.int32)})
    dataset = open_dataset(str(tmp_path / "made.npz"))
    assert np.array_equal(dataset.train.images, IMAGES) and np.array_equal(dataset.train.labels, LABELS)
    assert dataset.train.labels.dtype == np.int64 and len(dataset.test.labels) == 0
    assert dataset.classes == ("0", "1", "2") and dataset.max_value == 255 and dataset.name == "made"


def test_it_can_be_prepared_checked_and_described(tmp_path, root, capsys):
    root.mkdir(exist_ok=True)
    np.savez_compressed(root / "made.npz", image=IMAGES, label=LABELS)
    ready = prepare("made", tmp_path / "ready")
    assert ready.fingerprint == open_dataset("made").fingerprint
    assert np.array_equal(open_dataset(str(tmp_path / "ready")).train.images, IMAGES)
    assert open_extra(ExtraConfig(str(tmp_path / "ready")), ready) is not None
    for command in ("check", "info"):
        assert main(["data", command, str(root / "made.npz")]) == 0
        assert main(["data", command, str(tmp_path / "ready")]) == 0
    assert "12 images, 4 to 4 a class" in capsys.readouterr().out
    assert main(["data", "list"]) == 0 and "made " in capsys.readouterr().out


BAD = {
    "no labels": ({"image": IMAGES}, "has no entry label or labels"),
    "no images": ({"x": IMAGES, "label": LABELS}, "has no entry image or images"),
    "floats": ({"image": IMAGES / 255, "label": LABELS}, r"images are float64 \[12, 4, 5, 3\], expected uint8"),
    "flat": ({"image": IMAGES[0], "label": LABELS}, r"images are uint8 \[4, 5, 3\]"),
    "none": ({"image": IMAGES[:0], "label": LABELS[:0]}, r"images are uint8 \[0, 4, 5, 3\]"),
    "too few labels": ({"image": IMAGES, "label": LABELS[:5]}, r"labels are int64 \[5\], expected a class number"),
    "negative": ({"image": IMAGES, "label": LABELS - 1}, "labels are int64"),
    "huge": ({"image": IMAGES, "label": LABELS + 2**16}, "expected a class number from 0 to 65535 for each of 12"),
    "beyond int64": ({"image": IMAGES, "label": np.full(12, 2**63, np.uint64)}, "labels are uint64"),
    "from 1": (
        {"image": IMAGES, "label": LABELS + 1},
        "labels count from 1 to 3, expected from 0: save them as label - 1",
    ),
    "three rows of three": ({"image": IMAGES[:, :3], "label": LABELS}, r"uint8 \[12, 3, 5, 3\], which may be"),
    "five channels": ({"image": IMAGES.transpose(0, 1, 3, 2), "label": LABELS}, "expected uint8 .* of 1 or 3 channels"),
    "soft": ({"image": IMAGES, "label": LABELS / 2}, "labels are float64"),
    "pickled": ({"image": np.array([{}]), "label": LABELS}, "is no readable .npz file of plain arrays"),
}


@pytest.mark.parametrize("kind", BAD)
def test_anything_else_is_refused_in_one_line(tmp_path, kind, capsys):
    entries, says = BAD[kind]
    np.savez(tmp_path / "bad.npz", **entries)
    with pytest.raises(UserError, match=says):
        open_dataset(str(tmp_path / "bad.npz"))
    assert main(["data", "check", str(tmp_path / "bad.npz")]) == 1
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_pytorchs_order_of_axes_is_turned_with_a_notice(tmp_path, channels, capsys):
    images = IMAGES[..., :channels]
    np.savez(tmp_path / "first.npz", image=images.transpose(0, 3, 1, 2), label=LABELS)
    dataset = open_dataset(str(tmp_path / "first.npz"))
    assert np.array_equal(dataset.train.images, images) and dataset.train.images.flags.c_contiguous
    assert f"[12, {channels}, 4, 5]: taken as [N, C, H, W]" in capsys.readouterr().err
    for command in ("check", "info"):
        assert main(["data", command, str(tmp_path / "first.npz")]) == 0
        assert "taken as [N, C, H, W]" in capsys.readouterr().err


def test_classes_without_images_are_named(tmp_path, capsys):
    np.savez(tmp_path / "sparse.npz", image=IMAGES, label=np.where(LABELS == 1, 4, LABELS))
    assert len(open_dataset(str(tmp_path / "sparse.npz")).classes) == 5
    assert "has no image of 2 of its 5 classes: 1, 3" in capsys.readouterr().err


def entry(shape: str, body: bytes = bytes(64), descr: str = "|u1") -> bytes:
    """An array's file as it stands in an .npz, its header as it is given."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


HOSTILE = {
    "no array": b"hello",
    "empty": b"",
    "a header that is cut": entry("(64,), }")[:60],
    "a tebibyte": entry("(1099511627776,)"),
    "nested deeply": entry("(" * 3000 + ")" * 3000),
    "nested beyond the parser": entry("-" * 9000 + "1"),
    "less than none": entry("(-8, -8)"),
    "nothing of anything": entry("(64,)", descr="|V0"),
    "too long": entry("(63,)"),
    "another version": b"\x93NUMPY\x09\x00" + entry("(64,)")[8:],
}


def zipped(path, method=zipfile.ZIP_STORED, **entries: bytes):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_an_entry_says_of_itself_is_not_believed(tmp_path, kind):
    path = zipped(tmp_path / "bad.npz", image=entry("(64,)"), label=HOSTILE[kind])
    with (
        memory_of(1 << 29),
        pytest.raises(UserError, match=r"^[^\n]*is no readable \.npz file of plain arrays [^\n]*$"),
    ):
        read_npz(path)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "usable_memory", lambda: 4096)
    path = zipped(tmp_path / "large.npz", zipfile.ZIP_DEFLATED, image=entry("(5000,)", bytes(5000)))
    with pytest.raises(UserError, match="more than the 0 there are"):
        read_npz(path)


def test_an_entry_that_holds_less_than_it_says_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "short.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("image.npy", "w") as entry:
            np.lib.format.write_array(entry, np.zeros(5000, np.uint8))
        whole = archive.getinfo("image.npy")
        with archive.open("label.npy", "w") as entry:
            header = io.BytesIO()
            np.lib.format.write_array(header, np.zeros(5000, np.uint8))
            entry.write(header.getvalue()[:-4000])  # its checksum is right
        archive.getinfo("label.npy").file_size = whole.file_size
    with pytest.raises(UserError, match="ends early"):
        read_npz(tmp_path / "short.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_compression_without_bounds_is_refused(tmp_path, method):
    path = zipped(tmp_path / "odd.npz", method, image=entry("(64,)"))
    with pytest.raises(UserError, match="compressed as NumPy does not"):
        read_npz(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_kind_of_plain_array_comes_back(tmp_path, save):
    arrays = {
        "scalar": np.array(3.5, np.float32),
        "text": np.array("words"),
        "none": np.zeros((0, 3)),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "foreign": np.arange(3, dtype=">i4"),
        "flags": np.array([True, False]),
    }
    save(tmp_path / "all.npz", **arrays)
    found = read_npz(tmp_path / "all.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_refused_or_the_same(tmp_path, save, count):
    path = tmp_path / "x.npz"
    save(path, image=IMAGES, label=LABELS)

    def opened():
        return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in read_npz(path).items()}

    found = outcomes(path, path.read_bytes(), count, opened, seed=save.__name__)
    assert found["refused"] > count / 2
