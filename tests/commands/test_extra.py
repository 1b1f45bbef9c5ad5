"""A run with extra images: recorded, resumed to the same bits, the same in two processes, and only with its own set."""

import json
import signal

import numpy as np
import pytest

from fastarat.data.formats.prepared import write
from fastarat.data.images.dataset import Images, from_splits
from fastarat.data.open import open_dataset
from tests.helpers.command_line import TINY, assert_same_run, finish, metrics, newest, start, state_of, wait_for


@pytest.fixture
def extra(tmp_path):
    """Where two sets of digits lie that are no training images: the test images, and the same mirrored."""
    digits = open_dataset("digits")
    for name, images in (("synthetic", digits.test.images), ("mirrored", digits.test.images[:, :, ::-1])):
        part = Images(np.ascontiguousarray(images), digits.test.labels)
        write(from_splits(name, part, part, digits.classes, 16), tmp_path / name, "test")
    np.savez(tmp_path / "made.npz", images=digits.test.images, labels=digits.test.labels)
    return tmp_path / "synthetic"


@pytest.mark.slow
def test_a_run_with_extra_images_records_them_and_goes_on_to_the_same_bits(fastarat, tmp_path, extra):
    flags = (*TINY, "--epochs", "20", "--attack.steps", "2", "--extra.data", str(extra), "--extra.ratio", "0.25")
    process = start("train", *flags, "--out", "stopped")
    wait_for(tmp_path / "stopped/metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 128 + signal.SIGTERM
    assert 0 < state_of(newest(tmp_path / "stopped"))["step"] < 80
    assert fastarat("train", "--resume", "stopped").code == 0
    assert fastarat("train", *flags, "--out", "whole").code == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")

    config = json.loads((tmp_path / "whole/config.json").read_text())
    assert config["extra"] == {"data": str(extra), "ratio": 0.25}
    (session,) = json.loads((tmp_path / "whole/record.json").read_text())["sessions"]
    known = open_dataset(str(extra))
    assert session["extra"] == {"name": "synthetic", "fingerprint": known.fingerprint, "images": 360}
    assert state_of(newest(tmp_path / "whole"))["step"] == 80, "epochs are as long as without"

    extra.rename(tmp_path / "was")
    (tmp_path / "mirrored").rename(extra)
    assert "was trained with other extra images" in fastarat("train", "--resume", "whole").error
    found = fastarat("train", "--resume", "whole", "--extra.data", tmp_path / "was", "--epochs", "21")
    assert found.code == 0, "it has moved"


@pytest.mark.slow
def test_two_processes_see_the_same_images_as_one(fastarat, tmp_path, extra):
    steps = (*TINY, "--epochs", "3", "--evaluation.every-epochs", "0", "--sync-bn", "--dtype", "fp64")
    flags = (*steps, "--extra.data", str(extra), "--extra.ratio", "0.3")
    assert fastarat("train", *flags, "--out", "one").code == 0
    assert finish(start("train", *flags, "--procs", "2", "--out", "two")).code == 0
    one, two = ([line["train"]["loss"] for line in metrics(tmp_path / run)] for run in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--extra.data", "synthetic", "--extra.ratio", "1"), "extra ratio is 1.0: give a share"),
        (("--extra.data", "synthetic", "--extra.ratio", "0.001"), "makes 0 of a batch of"),
        (("--extra.data", "absent"), "unknown data set 'absent'"),
        (("--data", "made.npz"), "made has no test images to watch: give --num-validation-images"),
    ],
)
def test_an_extra_set_that_cannot_be_used_is_refused(fastarat, extra, flags, says):
    result = fastarat("train", *TINY, *flags, "--out", "run")
    assert result.code == 2 and says in result.error
