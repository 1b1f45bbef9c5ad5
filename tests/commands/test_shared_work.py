"""`fastarat eval` and `analyze` in several processes: their results are those of one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastarat.common.processes import LAUNCHER
from tests.helpers.command_line import finish, start

# Five batches, the last of which is smaller: of two processes one has three and the other two.
FEW = ("--num-images", "45", "--batch", "10", "--eps-255", "20", "--device", "cpu", "--json")
TWO = ("--procs", "2")
TIMES = ("seconds", "record", "model")


def result_of(*args: object) -> dict[str, Any]:
    """What a command says as JSON, but for when and how fast."""
    done = finish(start(*args))
    assert done.code == 0, done.err
    return {name: value for name, value in done.json.items() if name not in TIMES}


@pytest.mark.slow
def test_two_processes_break_the_same_images_as_one(trained, tmp_path):
    attack = ("--attack", "apgd-ce,fab-t,square", "--state")
    one = result_of("eval", trained, *FEW, *attack, "one", "--save", "one.npz")
    two = result_of("eval", trained, *FEW, *attack, "two", "--save", "two.npz", *TWO)
    assert two == one and 0 < one["counts"]["square"] < one["counts"]["clean"]
    mine, theirs = np.load("two.npz"), np.load("one.npz")
    assert mine.files == theirs.files
    for name in mine.files:
        np.testing.assert_array_equal(mine[name], theirs[name])
    # Each saved its batches, from which any number of processes goes on.
    assert sorted(path.name for path in Path("two").iterdir()) == sorted(path.name for path in Path("one").iterdir())
    assert result_of("eval", trained, *FEW, *attack, "two") == one


@pytest.mark.slow
def test_two_processes_that_a_budget_ends_go_on_to_the_same_result(trained, tmp_path):
    attack = ("--attack", "apgd-ce", "--batch", "6")
    one = result_of("eval", trained, *FEW, *attack)
    num_batches = -(-one["counts"]["clean"] // 6)
    assert num_batches > 2
    for done in range(2, num_batches, 2):  # in spite of the budget each process does one
        ended = finish(start("eval", trained, *FEW, *attack, *TWO, "--budget", "1e-9"))
        assert ended.code == 1 and f"apgd-ce has done {done} of {num_batches} batches" in ended.error
    assert result_of("eval", trained, *FEW, *attack, *TWO) == one


@pytest.mark.slow
def test_two_processes_analyse_what_one_does(trained, tmp_path):
    few = ("--num-images", "20", "--batches", "1", "--device", "cpu")
    for out, flags in (("one", ()), ("two", TWO)):
        done = finish(start("analyze", trained, *few, *flags, "--out", out))
        assert done.code == 0, done.err
    one, two = (json.loads((tmp_path / out / "analysis.json").read_text()) for out in ("one", "two"))
    assert two == one


def test_processes_that_there_cannot_be_are_refused_in_one_line(fastarat, trained):
    for flags, said in (
        (("--gpus", "2", "--procs", "2"), "--gpus are processes on GPUs: leave --procs and --device out"),
        (("--procs", "2", "--device", "cuda"), "--procs are processes on the CPU"),
        (("--procs", "-1"), "--procs is -1: give 1 or more"),
        (("--gpus", "4096"), "--gpus 4096: this machine has"),
    ):
        for command in ("eval", "analyze"):
            result = fastarat(command, trained, *flags)
            assert result.code == 2 and result.error.startswith(said)
    for flags, said in (
        (("--nodes", "2"), "--nodes N and --rendezvous HOST:PORT go together"),
        (("--rendezvous", "here:1"), "--nodes N and --rendezvous HOST:PORT go together"),
        (("--nodes", "0"), "--nodes is 0: give 1 or more"),
        (("--nodes", "2", "--rendezvous", "here"), "--rendezvous here: give the HOST:PORT"),
    ):
        for command in ("eval", "analyze"):
            result = fastarat(command, trained, *flags)
            assert result.code == 2 and result.error.startswith(said)


def test_a_place_to_meet_is_refused_where_torchrun_has_given_one(fastarat, trained, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.delenv(LAUNCHER, raising=False)  # a launch that was refused leaves it
    for command in ("eval", "analyze"):
        result = fastarat(command, trained, "--nodes", "2", "--rendezvous", "here:1")
        assert result.code == 2 and result.error.startswith("--rendezvous is for fastarat's own launcher")
