"""Candidates that train as the definition does are timed with the plainest; the others are refused, and said."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fastarat.common.errors import WorkError
from fastarat.training.choices import Choices
from fastarat.training.tuning import candidates, chunks, search, trial
from fastarat.training.tuning.search import try_all
from fastarat.training.tuning.subject import FastaratSubject
from fastarat.training.tuning.trial import Tried, fastest
from tests.helpers.ladders import WRONG, setting_of
from tests.helpers.step_parts import nets_of_one_block

PLAIN = Choices()
RIGHT, WRONG_ONE, BROKEN = replace(PLAIN, dtype="bf16"), replace(PLAIN, unroll=True), replace(PLAIN, unroll=False)
SETTING = setting_of(batch=8, steps=2)


@pytest.fixture
def tried(monkeypatch):
    """What comes of a right candidate, one made wrong, one that fails, and another number of threads."""

    def build(setting, form):
        if form is WRONG_ONE:
            setting = WRONG["a halved learning rate"](setting)
        if form is BROKEN:
            raise RuntimeError("no such kernel\nmore lines")
        return FastaratSubject(setting, form)

    monkeypatch.setattr(trial, "FastaratSubject", build)
    monkeypatch.setattr(search, "candidates", lambda *_: [PLAIN, RIGHT, WRONG_ONE, BROKEN])
    monkeypatch.setattr(search, "other_threads", lambda _: [1])
    # One graph of this step is in time, and not one more convolution.
    with nets_of_one_block():
        size = trial.unrolled_size(FastaratSubject(SETTING, PLAIN).training.parts)
    monkeypatch.setattr(trial, "MOST_UNROLLED", size)
    monkeypatch.setattr(trial, "TURNS", 2)
    monkeypatch.setattr(chunks, "_CHUNK_SECONDS", 0.01)
    shares, said = [], []
    monkeypatch.setattr(search, "notice", said.append)
    with nets_of_one_block():
        found, kernels = try_all(SETTING, shares.append)
    assert sum(shares) == pytest.approx(1) and kernels == {}
    assert said[1].endswith(found[2].problem) and said[2].endswith("RuntimeError: no such kernel")
    return found


def test_what_is_wrong_or_fails_is_refused_and_the_others_are_timed(tried):
    plain, right, wrong, broken, threads = tried
    assert wrong.problem.startswith("differs from the definition: ") and " more" in wrong.problem
    assert broken.problem == "fails: RuntimeError: no such kernel"
    assert not wrong.images_per_s and not broken.images_per_s
    for one in (plain, right, threads):
        assert one.problem is None and one.images_per_s > 0 and one.ready_s > 0
    assert threads.form.threads == 1 and right.ratio[0] <= right.ratio[1] <= right.ratio[2]


def test_a_plainest_form_that_is_refused_ends_it(monkeypatch):
    wrong = WRONG["a halved learning rate"]
    monkeypatch.setattr(trial, "FastaratSubject", lambda setting, form: FastaratSubject(wrong(setting), form))
    monkeypatch.setattr(search, "candidates", lambda *_: [PLAIN])
    with pytest.raises(WorkError, match=r"fp32, pytorch, eager\) differs from the definition"):
        try_all(SETTING, lambda share: None)


def test_one_graph_that_would_take_too_long_to_compile_is_not_tried(monkeypatch):
    monkeypatch.setattr(trial, "MOST_UNROLLED", 5)
    running = SimpleNamespace(subject=FastaratSubject(SETTING, PLAIN))
    found = trial.Trial.of(SimpleNamespace(base=running), replace(PLAIN, compile="compile", unroll=True))
    assert "not tried: " in found.problem and "up to 5 compile in time" in found.problem


def test_the_form_by_which_a_run_ends_first_depends_on_its_length():
    plain = Tried(PLAIN, None, 0.1, 100.0)
    compiled = Tried(replace(PLAIN, compile="compile"), None, 10.0, 200.0, (1.9, 2.0, 2.1))
    unresolved = Tried(replace(PLAIN, compile="compile", unroll=True), None, 0.1, 110.0, (0.7, 2.9, 8.0))
    refused = Tried(replace(PLAIN, dtype="fp16"), "differs", 0.0, 900.0, (8.0, 9.0, 9.1))
    every = [plain, compiled, refused]
    assert fastest(every, 1000, every) == plain  # 10 s, and 15 s compiled
    assert fastest(every, 10_000, every) == compiled
    assert fastest(every, 10_000, [plain, refused]) == plain
    assert fastest(every, 10_000, [refused]) is None
    assert fastest([*every, unresolved], 10_000, [*every, unresolved]) == compiled
    assert fastest([plain, unresolved], 1000, [plain, unresolved]) == plain


def test_only_what_runs_here_and_is_left_open_is_a_candidate(monkeypatch):
    config = SETTING.config
    forms = candidates.candidates(config, "cpu")
    assert forms[0] == PLAIN and {form.compile for form in forms} == {"eager", "compile"}
    assert {form.kernels for form in forms} == {"pytorch"}
    assert {form.unroll for form in forms if form.compile == "compile"} == {True, False}
    named = candidates.candidates(replace(config, dtype="bf16", compile="eager"), "cpu")
    assert named == [replace(PLAIN, dtype="bf16")]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert {form.compile for form in candidates.candidates(config, "cpu")} == {"eager"}


def test_half_and_twice_the_threads_are_tried_where_nobody_gives_their_number(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    assert candidates.other_threads("cpu") == []  # OMP_NUM_THREADS is set
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert candidates.other_threads("cpu") == [2, 8] and candidates.other_threads("cuda") == []
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    assert candidates.other_threads("cpu") == [2]


def test_another_stem_is_tried_and_open_on_a_gpu_alone(monkeypatch):
    monkeypatch.setattr(candidates, "candidates", lambda *_: [PLAIN])
    assert candidates.other_stems("cpu") == [] and candidates.open_forms(SETTING.config, "cpu") == [PLAIN]
    padded = replace(PLAIN, stem_channels=8)
    assert candidates.other_stems("cuda") == [8] and candidates.open_forms(SETTING.config, "cuda") == [PLAIN, padded]
    assert candidates.described(padded) == "fp32, pytorch, eager, stem channels: 8"
