"""What is counted of a loader: CPU time of all processes, whole epochs, and the time that a step waits."""

import os
import subprocess
import sys
import time

import pytest

from bench.loaders import (
    cpu_time as loaders_cpu,
)
from bench.loaders import (
    feeds as loaders_feeds,
)
from bench.loaders import (
    training as loaders_training,
)
from bench.loaders.cpu_time import cpu_seconds, descendants
from bench.loaders.in_a_process import Mark, speed
from tests.helpers.loaders import case

BUSY = (
    "import os, sys, time\n"
    "child = os.fork() == 0\n"
    "while time.process_time() < 0.2: pass\n"
    "if child: os.write(1, b'x')\n"
    "sys.stdin.read()\n"
)


def test_cpu_time_is_that_of_all_processes_living_or_ended():
    before, own = cpu_seconds(), time.process_time()

    def others() -> float:
        return cpu_seconds() - before - (time.process_time() - own)

    process = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.read(1)
    deadline = time.monotonic() + 60
    while others() < 0.39:  # the parent and its child
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid in descendants(os.getpid())
    process.stdin.close()
    process.wait()
    process.stdout.close()
    assert process.pid not in descendants(os.getpid())
    # The grandchild may be left to the system, which does not tell its time.
    assert others() >= 0.19


def test_cpu_time_of_less_than_a_tick_is_counted():
    for _ in range(20):
        before, begun = cpu_seconds(), time.process_time()
        sum(range(1000))
        least = time.process_time() - begun
        assert 0 < least <= cpu_seconds() - before
        begun = time.process_time()
        assert begun <= loaders_cpu.own_seconds(os.getpid()) <= time.process_time()


def test_a_process_that_has_ended_took_no_more():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert loaders_cpu.own_seconds(process.pid) == 0


def test_a_loader_is_timed_over_whole_epochs(of_small, monkeypatch):
    epochs = []
    monkeypatch.setattr(
        loaders_feeds.ResidentFeed,
        "epoch",
        lambda self, number, real=loaders_feeds.ResidentFeed.epoch: epochs.append(number) or real(self, number),
    )
    found = speed(case(of_small, "resident", "raw"), 0.01)
    assert found["first"]["images"] == 40 and found["first"]["first_batch_s"] > 0
    assert epochs == list(range(1, len(epochs) + 1)) and found["steady"]["images"] == 40 * (len(epochs) - 1) > 0
    assert all(found[stage]["images_per_s"] > 0 for stage in ("first", "steady"))


def test_a_loader_is_timed_over_an_epoch_at_least(of_small):
    assert speed(case(of_small, "resident", "raw"), 0.0)["steady"]["images"] == 40


def test_images_per_second_are_those_since_the_mark(monkeypatch):
    marks = iter([(10.0, 3.0), (12.0, 3.5)])
    monkeypatch.setattr(Mark, "now", classmethod(lambda cls: cls(*next(marks))))
    found = Mark.now().since(1000)
    assert found == {"images": 1000, "images_per_s": 500, "cpu_s_per_1000": 0.5}


def test_waiting_is_the_time_between_a_steps_end_and_the_next_ones_start(monkeypatch):
    class State:
        def advance(self, step, batch):
            seen.append(batch)

    seen, times = [], iter([0.0, 1.0, 4.0, 4.5, 8.0])  # waits 1, steps 3, waits 0.5, steps 3.5
    monkeypatch.setattr(loaders_training, "mark", lambda on_gpu: next(times))
    found = loaders_training._steps(State(), None, iter("ab"), steps=2, on_gpu=False)  # type: ignore[arg-type]
    assert found == {"ms": 8000, "waiting_ms": 1500} and seen == ["a", "b"]


@pytest.mark.parametrize(("loader", "stored"), [("resident", "raw"), ("plain", "png")])
def test_a_training_is_fed_by_the_loader_and_says_what_it_is(of_small, loader, stored):
    found = loaders_training.training(case(of_small, loader, stored), 0.01)
    assert (found["model"], found["batch"], found["attack_steps"]) == ("tiny", 8, 1)
    assert found["steps"] >= 4 and found["images"] == 8 * found["steps"]
    assert 0 < found["waiting_share"] < 1 and found["cpu_s_per_1000"] > 0
