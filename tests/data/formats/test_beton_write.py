"""`fastarat data build` stores every image as asked, whole or not at all, the same for any number of processes."""

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastarat.common.errors import UserError, WorkError
from fastarat.data.formats.beton import write as beton_write
from fastarat.data.formats.beton.storage import SMART_BYTES, Storage
from fastarat.data.formats.beton.structure import MIN_PAGE
from fastarat.data.formats.beton.write import build
from fastarat.data.images import pool
from fastarat.data.images.dataset import Images, from_splits
from tests.helpers.beton_sets import built, encoded, folder_contents, pixel_contents, pixels, reopened
from tests.helpers.small_sets import jpeg, one_line
from tests.helpers.unmeasured import UNMEASURED


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "place" / "set.beton"


def refused(contents, out, error=UserError, **storage) -> str:
    with pytest.raises(error) as caught:
        built(contents, out, **storage)
    assert not out.parent.exists() or not [p for p in out.parent.iterdir() if p.name != "occupied.beton"]
    return one_line(caught)


def test_pixels_come_back_as_they_were(out):
    contents = pixel_contents()
    data = reopened(built(contents, out, mode="raw"))
    assert data.classes == ("a", "b", "c") and data.name == "noise" and data.max_value == 255
    for part, given in ((data.train, contents.train), (data.test, contents.test)):
        assert part.raw.all() and np.array_equal(part.labels, given.labels)
        assert all(np.array_equal(pixels(part, i), given.images[i]) for i in range(len(part)))
    assert data.test.names[3] == "test image 3 of set.beton"


def test_a_jpeg_is_stored_byte_for_byte(photos, out):
    data = reopened(built(folder_contents(photos), out, mode="jpeg"))
    assert not data.train.raw.any() and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.read(4) == (photos / "train/dog/1.jpg").read_bytes()
    assert data.test.read(1) == (photos / "test/cat/1.jpg").read_bytes()


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "L", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
    ],
)
def test_whatever_is_no_plain_jpeg_becomes_one(photos, out, kind, mode, options):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(1))).convert(mode).save(buffer, kind, **options)
    (photos / "train/cat/0.jpg").write_bytes(buffer.getvalue())
    data = reopened(built(folder_contents(photos), out, mode="jpeg", quality=100))
    stored = Image.open(io.BytesIO(data.train.read(0)))
    assert stored.format == "JPEG" and stored.mode == "RGB" and "progressive" not in stored.info
    expected = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    assert np.abs(np.asarray(stored) - expected).mean() < 30  # colour noise, whose colours are halved in resolution


def test_smart_keeps_small_images_as_pixels_and_large_ones_as_jpeg(photos, out):
    side = int((SMART_BYTES / 3) ** 0.5)
    (photos / "train/cat/0.jpg").write_bytes(jpeg(1, side, side))
    (photos / "train/cat/1.jpg").write_bytes(jpeg(2, side + 1, side + 1))
    data = reopened(built(folder_contents(photos), out, mode="smart"))
    assert data.train.raw.tolist() == [True, False, True, True, True, True]
    assert np.array_equal(pixels(data.train, 0), np.asarray(Image.open(photos / "train/cat/0.jpg")))


def test_images_are_shrunk_to_the_longest_side_and_never_enlarged(photos, out):
    (photos / "train/cat/0.jpg").write_bytes(jpeg(1, 40, 20))
    data = reopened(built(folder_contents(photos), out, mode="raw", longest_side=16))
    assert data.train.sizes[0].tolist() == [16, 8] and data.train.sizes[1].tolist() == [12, 12]
    expected = Image.open(photos / "train/cat/0.jpg").resize((16, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(data.train, 0), np.asarray(expected))


def test_images_larger_than_a_page_make_the_pages_larger(tmp_path, out):
    files = []
    for i, side in enumerate((300, 1200, 30, 700, 900)):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((side, side, 3), 10 * i, np.uint8)).save(files[-1])
    contents = from_splits("large", encoded(files, [0] * 5), encoded(files[:1], [0]), ("one",))
    data = reopened(built(contents, out, mode="raw"))
    assert out.stat().st_size > 4 * MIN_PAGE and data.train.sizes[1].tolist() == [1200, 1200]
    assert all((pixels(data.train, i) == 10 * i).all() for i in range(5))


def test_the_file_is_the_same_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "BATCH", 3)
    files = []
    for processes in (1, 2):
        build(pixel_contents(), tmp_path / f"{processes}.beton", Storage("jpeg"), source="noise", processes=processes)
        files += [(tmp_path / f"{processes}.beton{suffix}").read_bytes() for suffix in ("", ".json")]
    assert files[0] == files[2] and files[1] == files[3]


def test_a_process_that_dies_is_one_line_and_leaves_nothing(out, monkeypatch):
    monkeypatch.setattr(pool, "BATCH", 2)
    monkeypatch.setattr(pool, "live_with_parent", os.abort)
    monkeypatch.setattr(pool, "num_cores", lambda: 2)
    assert "process that works on images died" in refused(pixel_contents(), out, WorkError, mode="jpeg")


def test_the_seal_says_what_was_built(out):
    built(pixel_contents(), out, "noise.npz", mode="raw", quality=80)
    seal = json.loads(Path(f"{out}.json").read_text())
    assert seal["version"] == 2 and seal["source"] == "noise.npz" and seal["mode"] == "raw" and seal["quality"] == 80
    assert seal["counts"] == {"train": 6, "test": 4} and seal["class_counts"]["train"] == [2, 2, 2]
    assert seal["bytes"] == out.stat().st_size and len(seal["crc32"]) == 8 * 10
    assert sorted(p.name for p in out.parent.iterdir()) == ["set.beton", "set.beton.json"]


def test_every_image_that_cannot_be_stored_is_named_and_nothing_is_left(photos, out):
    (photos / "train/cat/0.jpg").write_bytes(b"")
    (photos / "train/cat/1.jpg").write_bytes(jpeg(1)[:300])
    deep = photos / "test/dog/1.jpg"
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep, "PNG")
    (photos / "train/cat/2.jpg").write_bytes(b"words")
    text = refused(folder_contents(photos), out, mode="raw")
    assert "0.jpg cannot be stored (zero bytes)" in text and "1.jpg cannot be stored" in text
    assert "2.jpg cannot be stored (not a JPEG or PNG image)" in text and "and 1 more" in text
    for name in ("0", "1", "2"):
        (photos / f"train/cat/{name}.jpg").write_bytes(jpeg(3))
    assert "more than 8 bits a channel" in refused(folder_contents(photos), out, mode="raw")


def test_what_a_beton_cannot_hold_is_refused(out):
    grey = Images(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(3, np.int64))
    text = refused(from_splits("digits", grey, grey, ("a",), 16), out)
    assert "source is not of 8-bit RGB images" in text and "--loader resident" in text


@pytest.mark.parametrize("storage", [{"mode": "webp"}, {"longest_side": 0}, {"quality": 101}])
def test_settings_that_mean_nothing_are_refused(out, storage):
    assert "give" in refused(pixel_contents(), out, **storage)


def test_a_file_that_is_there_is_never_overwritten(tmp_path):
    occupied = tmp_path / "occupied.beton"
    occupied.write_bytes(b"mine")
    assert "exists already" in refused(pixel_contents(), occupied)
    assert occupied.read_bytes() == b"mine"
    assert "ends with .beton" in refused(pixel_contents(), occupied.with_suffix(".bin"))


def test_a_file_where_the_checksums_would_be_is_not_overwritten_either(tmp_path):
    notes = tmp_path / "set.beton.json"
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"set\.beton\.json exists already"):
        built(pixel_contents(), tmp_path / "set.beton")
    assert notes.read_text() == "mine" and not (tmp_path / "set.beton").exists()


def test_a_place_inside_a_file_is_told_by_the_name_that_was_given(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkError) as error:
        built(pixel_contents(), tmp_path / "file" / "set.beton")
    assert "cannot write" in one_line(error) and "partial" not in str(error.value)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored
sys.path[:0] = sys.argv[2:]
from tests.helpers.beton_sets import pixel_contents
from fastarat.data.formats.beton import write as beton_write
from fastarat.data.formats.beton.storage import Storage
from fastarat.__main__ import main
import fastarat.commands.recipes as command

def run(args):
    beton_write.build(pixel_contents(60, 20, 160), Path(sys.argv[1]), Storage("raw"), source="noise", processes=2)
    return 0

if os.environ.get("HELD"):
    beton_write._finish = lambda *given: time.sleep(60)
command.run = run
sys.exit(main(["recipes"]))
"""


def start(out: Path, **options) -> subprocess.Popen:
    root = Path(__file__).parents[3]
    paths = [str(root), str(root / "kernels")]
    script = out.parent / "script.py"
    script.write_text("if __name__ == '__main__':\n" + "\n".join("    " + line for line in SCRIPT.splitlines()))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **options.pop("env", {})}
    command = [sys.executable, str(script), str(out), *paths]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **options)


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != "script.py"]


def test_a_disk_that_fills_is_one_line_and_leaves_nothing(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))

    process = start(tmp_path / "set.beton", preexec_fn=limit)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in text
    assert f"cannot write {tmp_path / 'set.beton'}" in text and "nothing was left there" in text
    assert left(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(tmp_path, number):
    process = start(tmp_path / "set.beton", start_new_session=True, env=UNMEASURED | {"HELD": "1"})
    deadline = time.monotonic() + 60
    while not left(tmp_path) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    assert any(name.endswith(".partial") for name in left(tmp_path))
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # a terminal tells every process
    _, text = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "interrupted" in text and "Traceback" not in text
    assert left(tmp_path) == []


def test_a_file_that_cannot_get_its_name_leaves_no_seal_either(out, monkeypatch):
    def fail(self, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(beton_write.Path, "rename", fail)
    assert "Input/output error" in refused(pixel_contents(), out, WorkError)
