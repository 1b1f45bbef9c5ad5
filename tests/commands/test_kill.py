"""A run that is killed again and again ends in the same bits as one that is left alone."""

import random
import signal
import time

import pytest

from tests.helpers.command_line import ONE_EPOCH, assert_same_run, finish, start, wait_for_checkpoint

KILLS = 10
LONG = (
    *(*ONE_EPOCH, "--epochs", "80", "--num-train-images", "512", "--batch", "64", "--attack.steps", "2"),
    *("--evaluation.every-epochs", "10", "--checkpoint.every-s", "0.2", "--device", "cpu"),
)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_bit(fastarat, tmp_path):
    moments, run, kills = random.Random(0), tmp_path / "killed", 0
    command = ("train", *LONG, "--out", "killed")
    while kills < KILLS:
        sessions = (run / "record.json").stat().st_mtime_ns if run.exists() else 0
        process = start(*command)
        wait_for_checkpoint(run, process)
        while sessions and process.poll() is None and (run / "record.json").stat().st_mtime_ns == sessions:
            time.sleep(0.01)  # the session has begun once it has recorded itself
        time.sleep(moments.uniform(0, 0.8))
        process.kill()
        if finish(process).code != -signal.SIGKILL:
            break
        kills += 1
        command = ("train", "--resume", "killed")
    assert kills == KILLS, "the run ended before it was killed often enough"
    assert fastarat("train", "--resume", "killed").code == 0
    assert fastarat("train", *LONG, "--out", "whole").code == 0
    assert_same_run(run, tmp_path / "whole")
    assert not list(run.rglob("*.tmp"))
