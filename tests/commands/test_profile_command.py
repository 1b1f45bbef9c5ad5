"""`fastarat train … --profile N` shows where a step's time goes, and trains as without it."""

import gzip
import json
import os
import signal

import pytest

from fastarat.training.profiling.parts import PARTS
from fastarat.training.profiling.profiler import Profiler
from tests.helpers.command_line import TINY, assert_same_run, finish, start
from tests.helpers.step_parts import nets_of_one_block

FILES = {"trace.json.gz", "profile.json", "profile.txt", "profile.png"}


def test_a_profile_is_written_and_shown_and_the_weights_are_those_of_a_run_without(fastarat, tmp_path):
    with nets_of_one_block():
        assert fastarat("train", "digits-arat", *TINY, "--out", "without").code == 0
        done = fastarat("train", "digits-arat", *TINY, "--out", "run", "--profile", "1")
    assert done.code == 0, done.err
    folder = tmp_path / "run" / "profile"
    assert {path.name for path in folder.iterdir()} == FILES
    assert all(path.stat().st_size for path in folder.iterdir())
    events = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event["name"] == "training step" for event in events) == 1

    profile = json.loads((folder / "profile.json").read_text())
    assert [row["part"] for row in profile["parts"]] == [*PARTS, "gaps"]
    assert sum(row["share"] for row in profile["parts"]) == pytest.approx(1)
    assert sum(row["ms"] for row in profile["parts"]) == pytest.approx(profile["ms_a_step"])
    assert all(row["ms"] > 0 for row in profile["parts"])
    settings = [profile[name] for name in ("compile", "kernels", "dtype", "batch")]
    assert settings == ["eager", "pytorch", "float32", 64]
    text = (folder / "profile.txt").read_text()
    assert text.strip() in done.err and "ui.perfetto.dev" in done.err
    assert all(part in text for part in PARTS)
    assert_same_run(tmp_path / "run", tmp_path / "without")


@pytest.mark.parametrize(
    ("steps", "says"),
    [("0", "give 1 or more"), ("-3", "give 1 or more"), ("2", "give --profile 1 or fewer")],
)
def test_a_number_of_steps_that_cannot_be_recorded_is_refused_before_there_is_a_run(fastarat, tmp_path, steps, says):
    done = fastarat("train", "digits-arat", *TINY, "--out", "run", "--profile", steps)
    assert done.code == 2
    assert says in done.error
    assert not (tmp_path / "run").exists()


def test_stopped_in_the_recording_it_leaves_no_half_profile_and_a_run_that_goes_on_and_is_profiled(
    fastarat, tmp_path, monkeypatch
):
    def begin_and_press_ctrl_c(profiler: Profiler) -> None:
        begin(profiler)
        os.kill(os.getpid(), signal.SIGINT)

    begin = Profiler._start
    monkeypatch.setattr(Profiler, "_start", begin_and_press_ctrl_c)
    with nets_of_one_block():
        stopped = fastarat("train", "digits-arat", *TINY, "--out", "run", "--profile", "1")
    assert stopped.code == 128 + signal.SIGINT and "goes on from there" in stopped.err
    assert not (tmp_path / "run" / "profile").exists()
    monkeypatch.setattr(Profiler, "_start", begin)
    with nets_of_one_block():
        done = fastarat("train", "--resume", "run", "--epochs", "3", "--profile", "1", "--json")
    assert done.code == 0, done.err
    assert done.json["epoch"] == 3  # stdout is the result alone
    assert {path.name for path in (tmp_path / "run" / "profile").iterdir()} == FILES


@pytest.mark.slow
def test_of_several_processes_the_first_is_profiled(tmp_path):
    done = finish(start("train", "digits-arat", *TINY, "--procs", "2", "--profile", "1", "--out", tmp_path / "run"))
    assert done.code == 0, done.err
    profile = json.loads((tmp_path / "run" / "profile" / "profile.json").read_text())
    assert profile["batch"] == 32  # what one of them trains on
    assert done.err.count("ui.perfetto.dev") == 1
