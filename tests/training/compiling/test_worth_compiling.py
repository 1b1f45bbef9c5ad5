"""On a CPU the step is compiled where that saves more of the time left than it takes, by the last time here."""

import itertools
import json
import time
from dataclasses import replace
from functools import partial
from platform import node
from types import SimpleNamespace

import pytest
import torch

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.distributed import World
from fastarat.config.recipes import recipe
from fastarat.data.loading.choose import Opened
from fastarat.data.open import open_dataset
from fastarat.training.build import start_training
from fastarat.training.choices import Choices
from fastarat.training.compiling import worth_compiling
from fastarat.training.compiling.captured import state_tensors
from fastarat.training.compiling.compile_times import (
    NAME,
    gain_of,
    keep_gain,
    keep_seconds,
    last_slowness,
    seconds_to_compile,
    step_key,
)
from fastarat.training.compiling.worth_compiling import estimate, expected, faster_mode

SECOND = 1.0


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A folder of compiled code with nothing in it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def steps(monkeypatch):
    """The seconds of each step that was timed."""
    taken: list[float] = []
    monkeypatch.setattr(worth_compiling, "time", SimpleNamespace(monotonic=lambda: sum(taken)))
    monkeypatch.setattr(worth_compiling, "_slowness_now", lambda: 1.0)
    return taken


def training_of(steps=None, dtype="fp32", epochs=1, batch=8, num_images=80, first=SECOND):
    config = replace(recipe("digits-arat"), epochs=epochs, batch=batch, num_train_images=num_images)
    config = replace(config, attack=replace(config.attack, steps=1))
    opened = Opened(open_dataset("digits"), "resident", "")
    training, step = start_training(config, opened, Choices(dtype=dtype), World(torch.device("cpu")))

    def counted(batch):
        steps.append(SECOND if steps else first)
        return step(batch)

    return training, counted if steps is not None else step


def key_of(training):
    return step_key(training.parts, training.config, (8, 8))


def chosen(training, step, done=0):
    log = ChoiceLog(quiet=True)
    mode = faster_mode(training, step, done, log)
    (choice,) = log.choices
    assert choice["what"] == "compile" and choice["value"] == mode
    return mode, choice["why"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_timed_steps_leave_every_bit_as_it_was(dtype):
    training, step = training_of(dtype=dtype)
    keep_seconds(key_of(training), 0.001, 50)
    before, random = [tensor.clone() for tensor in state_tensors(training.parts)], torch.get_rng_state()
    assert chosen(training, step)[0] == "compile"
    assert all(map(torch.equal, state_tensors(training.parts), before))
    assert torch.equal(torch.get_rng_state(), random) and training.step == 0


def test_a_short_run_stays_eager_after_one_step_and_says_why(steps):
    mode, why = chosen(*training_of(steps))
    assert mode == "eager" and len(steps) == 1
    assert why == "about 10 s of steps are left: compiling takes 50 s and saves 2 s"


@pytest.mark.parametrize(("done", "mode"), [(0, "compile"), (700, "eager")])
def test_what_is_left_of_a_long_run_decides(steps, done, mode):
    training, step = training_of(steps, epochs=80)
    assert estimate(training) == 50
    assert chosen(training, step, done)[0] == mode


def test_the_first_step_of_a_process_is_not_what_the_others_take(steps):
    mode, why = chosen(*training_of(steps, epochs=10, first=20.0))
    assert mode == "eager" and steps == [20.0, SECOND] and why.startswith("about 1 min 40 s of steps are left")


def test_a_step_whose_code_is_kept_is_compiled_for_less(steps):
    training, step = training_of(steps, epochs=10)
    assert chosen(training, step)[0] == "eager"
    keep_seconds(key_of(training), 40, 50)
    assert chosen(training, step) == (
        "compile",
        "about 1 min 40 s of steps are left: compiling takes 8 s and saves 20 s",
    )


def test_what_was_gained_here_counts_and_not_what_is_usual(steps):
    training, step = training_of(steps, dtype="fp64", epochs=10)
    keep_gain(key_of(training), 2.0)  # before a first compilation, and after it
    keep_seconds(key_of(training), 40, 50)
    assert chosen(training, step) == (
        "compile",
        "about 1 min 40 s of steps are left: compiling takes 8 s and saves 50 s",
    )
    steps.clear()
    keep_gain(key_of(training), 0.97)
    assert chosen(training, step) == ("eager", "a compiled step was no faster here") and not steps
    assert seconds_to_compile(key_of(training)) == 8 and gain_of("another step") is None


def test_a_step_that_was_no_faster_is_tried_anew_after_a_day(steps, monkeypatch):
    """A neighbour on the cores may have made it so."""
    training, step = training_of(steps, epochs=10)
    keep_seconds(key_of(training), 40, 50)
    keep_gain(key_of(training), 0.97)
    keep_gain("a faster one", 1.5)
    assert chosen(training, step)[0] == "eager" and not steps
    tomorrow = time.time() + 24 * 3600 + 60
    monkeypatch.setattr("fastarat.training.compiling.compile_times.time", SimpleNamespace(time=lambda: tomorrow))
    assert chosen(training, step)[0] == "compile" and gain_of("a faster one") == 1.5


def test_a_format_of_which_nothing_is_known_is_not_timed(steps):
    assert chosen(*training_of(steps, dtype="fp64"))[0] == "eager" and not steps


def test_every_size_of_images_has_its_code(steps):
    training, _ = training_of(epochs=4)
    growing = replace(training.config, size=8, augment=replace(training.config.augment, crop="resized", start_size=4))
    training.config = growing
    keep_seconds(key_of(training), 100, 50)
    sizes = {growing.size_in(epoch) for epoch in range(1, 5)}
    assert len(sizes) > 1 and worth_compiling._cost(training) == 20 + (len(sizes) - 1) * 100


def test_an_estimate_follows_the_machine_as_slow_as_it_is_now_or_was_when_it_last_compiled(monkeypatch):
    training, _ = training_of()
    for times in (0.5, 3):  # as long as the measured machine
        clock = itertools.count(0, times * 0.02)
        monkeypatch.setattr(worth_compiling, "time", SimpleNamespace(monotonic=partial(next, clock)))
        seconds, why = expected(training, (8, 8))
        assert seconds == pytest.approx(times * 50) and "by the net's size" in why
    keep_seconds("another step", 500, 50)
    assert last_slowness() == 10 and expected(training, (8, 8))[0] == pytest.approx(500)
    keep_seconds("of a large net", 5000, None)
    assert last_slowness() == 10
    with monkeypatch.context() as later:
        later.setattr("fastarat.training.compiling.compile_times._RECENT_S", 0)
        assert last_slowness() == 0
    keep_seconds(key_of(training), 200, 50)
    assert expected(training, (8, 8)) == (40, "by the last time on this machine")
    monkeypatch.setattr("fastarat.training.compiling.compile_times.node", lambda: "another machine")
    assert last_slowness() == 0


def test_on_a_gpu_nothing_is_expected():
    def on(device):
        return SimpleNamespace(parts=SimpleNamespace(world=World(torch.device(device))))

    assert not worth_compiling._is_estimated(on("cuda")) and worth_compiling._is_estimated(on("cpu"))


def test_of_a_large_net_less_is_expected_to_be_saved(monkeypatch):
    training, _ = training_of(dtype="bf16")
    small = worth_compiling._share(training)[0]
    monkeypatch.setattr(worth_compiling, "MOST_CONVOLUTIONS", 1)
    assert 0 < worth_compiling._share(training)[0] < small
    worth_compiling.keep_compile_seconds(training, "of a large net", 500, was_kept=False)
    assert last_slowness() == 0  # that is by what small ones take


def test_the_last_time_counts_and_a_spoiled_file_is_no_time(cache):
    assert seconds_to_compile("a") is None
    keep_seconds("a", 50, 50)
    assert seconds_to_compile("a") == 10  # what is kept comes sooner
    keep_seconds("a", 7, 50)
    keep_seconds("a", 6, 50)
    assert seconds_to_compile("a") == 6 and seconds_to_compile("b") is None
    keep_seconds("tuned", 4, 50, was_kept=True)
    assert seconds_to_compile("tuned") == 4 and last_slowness() == 1  # of the first one
    for spoiled in (
        "[",
        "[]",
        json.dumps({"a": 1}),
        json.dumps({"a": {}}),
        json.dumps({"a": {"gain": "much"}}),
        json.dumps({"a": {"last": "soon", "machine": node()}}),
    ):
        (cache / NAME).write_text(spoiled)
        assert seconds_to_compile("a") is None and gain_of("a") is None and last_slowness() == 0
    keep_seconds("a", 5, 50)
    assert seconds_to_compile("a") == 5


def test_a_step_of_another_shape_or_format_is_another():
    training, _ = training_of()
    others = [training_of(dtype="bf16"), training_of(batch=10)]
    keys = {key_of(training), step_key(training.parts, training.config, (4, 4)), *(key_of(of) for of, _ in others)}
    assert len(keys) == 4 and key_of(training_of()[0]) in keys
    resumed = replace(training.config, attack=training.config.attack.resolved())  # as config.json has it
    assert step_key(training.parts, resumed, (8, 8)) == key_of(training)


def test_a_step_by_another_compiler_on_other_cores_or_of_other_decompositions_is_another(tmp_path, monkeypatch):
    training, times = training_of()[0], "fastarat.training.compiling.compile_times"
    (tmp_path / "c++").touch(mode=0o755)
    (tmp_path / "decompositions.py").touch()
    keys = [key_of(training), key_of(training)]
    monkeypatch.setattr(f"{times}.FILES", (tmp_path / "decompositions.py",))
    keys.append(key_of(training))
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    keys.append(key_of(training))
    (tmp_path / "c++").write_text("a newer version")
    keys.append(key_of(training))
    monkeypatch.setattr(f"{times}.num_cores", lambda: 1000)
    keys.append(key_of(training))
    assert keys[0] == keys[1] and len(set(keys)) == 5
    monkeypatch.setenv("CXX", "absent")
    assert key_of(training) not in keys
