"""An .npz file of images and labels is a data set without test images."""

import numpy as np
import pytest

from fastarat.__main__ import main
from fastarat.data.extra import open_extra
from fastarat.data.settings import ExtraConfig
from fastarat.data.sources import open_dataset, prepare
from fastarat.errors import UserError

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
