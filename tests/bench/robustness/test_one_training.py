"""One training without the command line's parser: measured once, stopped and gone on with, or profiled."""

import json
import signal

import pytest

from bench.common.rows import read_rows, write_row
from bench.robustness import one_training as training
from fastarat.common.environment import environment
from fastarat.common.errors import Interrupted
from fastarat.data.open import open_dataset

SMOKE = ("digits-arat", "--device", "cpu", "--smoke")


def test_a_training_is_measured_once_and_its_row_names_no_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTARAT_COMMIT", "0123456789ab")  # for a copy without history
    path = tmp_path / "rows.jsonl"
    flags = [*SMOKE, "--suite", "smoke", "--out", str(tmp_path / "run"), "--rows", str(path)]
    assert training.main(flags) == 0
    (row,) = read_rows(path)
    assert (row["suite"], row["method"], row["epochs"], row["num_images"]) == ("smoke", "arat", 1, 60)
    assert row["config"]["data"] == "digits" and 0 <= row["pgd20"] <= row["clean"] <= 100
    monkeypatch.setattr(training, "measure", lambda *_, **__: pytest.fail("a finished training was repeated"))
    assert training.main(flags) == 0
    assert list(read_rows(path)) == [row]
    assert "digits-arat: clean" in capsys.readouterr().out
    # A row of fewer images under AutoAttack is not the one that is asked for now, one of all there are is.

    def attacked(*_, num_autoattack, search):
        return {**row, "autoattack": 1.0, "num_autoattack": min(num_autoattack, 60)}

    monkeypatch.setattr(training, "measure", attacked)
    write_row(path, {"benchmark": "throughput"})
    for number in ("3", "4", "4", "2", "10000", "10000"):
        assert training.main([*flags, "--num-autoattack", number]) == 0
    of_training = [row.get("num_autoattack") for row in read_rows(path) if row["benchmark"] == "robustness"]
    assert of_training == [None, 3, 4, 60]
    # Nor is one of other data, settings or images.
    others = [{"config": {**row["config"], "data": "letters"}}, {"config": {**row["config"], "batch": 32}}]
    for other in (*others, {"num_images": 59}):
        path.unlink()
        write_row(path, {**row, **other})
        monkeypatch.setattr(training, "measure", lambda *_, **__: row)
        assert training.main(flags) == 0 and len(list(read_rows(path))) == 2, other
    # Without a commit nobody knows whose row it is.
    monkeypatch.setattr("bench.common.rows.environment", lambda: {**environment(), "commit": None})
    write_row(path, {**row, "commit": None})
    monkeypatch.setattr(training, "measure", lambda *_, **__: row)
    assert training.main(flags) == 0 and len(list(read_rows(path))) == 4


def test_a_training_that_is_stopped_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise Interrupted("stopped at step 7 (epoch 1)", signal.SIGTERM)

    monkeypatch.setattr(training, "measure", stop)
    flags = ["--suite", "smoke", "--out", str(tmp_path / "run"), "--rows", str(tmp_path / "rows.jsonl")]
    assert training.main([*SMOKE, *flags]) == 128 + signal.SIGTERM
    assert "stopped at step 7 (epoch 1); the same command goes on from there" in capsys.readouterr().err


def test_a_profile_without_data_is_of_random_images(tmp_path, monkeypatch, capsys):
    seen = []

    def train(config, out, profile):
        seen.append((config, out, profile))
        (out / "profile").mkdir(parents=True)
        found = {"recipe": config.recipe, "ms_a_step_unrecorded": 12.345, "launches_a_step": 6789.0}
        (out / "profile" / "profile.json").write_text(json.dumps(found))

    monkeypatch.setattr(training, "train", train)
    for number in range(2):
        flags = ["--device", "cpu", "--profile", "5", "--out", str(tmp_path / str(number))]
        assert training.main(["cifar10-resnet18-arat", *flags]) == 0
    assert "cifar10-resnet18-arat: 12.35 ms a step, 6,789 launches" in capsys.readouterr().out
    config, out, steps = seen[-1]
    images = open_dataset(config.data)
    assert images.name == "random" and images.train.images.shape == (20 * 128, 32, 32, 3)
    assert config.num_train_images == 20 * 128 and config.epochs == 1 and steps == 5
    assert out.parent == tmp_path / "1"


def test_a_profiler_that_saw_nothing_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "train", lambda *_, **__: None)
    assert training.main(["digits-arat", "--device", "cpu", "--profile", "1", "--out", str(tmp_path)]) == 1
    assert "saw nothing run on the device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--out"),
        (["--out", "x"], "give --suite NAME for the row, or --profile STEPS"),
        (["--out", "x", "--profile", "0"], "--profile is 0: give a number above 0"),
        (["--out", "x", "--profile", "3", "--data", "cifar11"], "unknown data set 'cifar11'"),
        (["--out", "x", "--suite", "s", "--rows", "."], "cannot write --rows .: Is a directory"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(flags, words, capsys):
    assert training.main(["digits-arat", "--device", "cpu", *flags]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out
