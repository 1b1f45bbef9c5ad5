"""Each of Triton's kernels, and each shape of its batch-norm, earns its place by itself: one that is wrong, fails or
loses is left out, and named; then another stem is tried."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fastarat_kernels.implementations import NAMES, TRITON
from fastarat_kernels.launch import UnsupportedInput

from fastarat.training.build import IMPLEMENTATIONS, kernels_of
from fastarat.training.choices import Choices
from fastarat.training.tuning import search, trial
from fastarat.training.tuning.search import try_all
from tests.helpers.ladders import setting_of, trained
from tests.helpers.step_parts import nets_of_one_block

PLAIN, WHOLE = Choices(), Choices(kernels="triton")
SETTING = setting_of(batch=8, steps=2)


@pytest.fixture(autouse=True)
def small_nets():
    with nets_of_one_block():
        yield


@pytest.fixture
def tuned(monkeypatch):
    """`tuned(gains)`: what comes of trials where a kernel, or that of a shape, makes the step so many times as fast."""

    def tune(gains, shapes=(), stems=(), stem_gain=1.0):
        def rate(form):
            left_out = {name for name in gains if {name, name.partition("@")[0]} & {*form.without}}
            there = {*gains} - left_out if form.kernels == "triton" else ()
            return 100.0 * math.prod(gains[name] for name in there) * (stem_gain if form.stem_channels else 1)

        monkeypatch.setattr(search, "candidates", lambda *_: [PLAIN, WHOLE])
        monkeypatch.setattr(search, "other_threads", lambda _: [])
        monkeypatch.setattr(search, "other_stems", lambda _: [*stems])
        monkeypatch.setattr(search, "map_shapes", lambda _: [*shapes])
        monkeypatch.setattr(trial.Trial, "_rate", lambda self, running: rate(running.subject.choices))
        shares, said = [], []
        monkeypatch.setattr(search, "notice", said.append)
        found, kernels = try_all(SETTING, shares.append)
        assert sum(shares) == pytest.approx(1)
        assert {f"{name}: {verdict}" for name, verdict in kernels.items()} <= set(said)
        return found, kernels

    return tune


@pytest.fixture
def all_right(monkeypatch):
    """Forms are right, and ready at once."""

    def ready(self, form):
        training = SimpleNamespace(parts=None)
        subject = SimpleNamespace(choices=form, training=training, is_finite=lambda: True, close=lambda: None)
        return trial.Running(subject, iter(()), 2), 0.1  # type: ignore[arg-type]

    monkeypatch.setattr(trial.Trial, "_ready", ready)
    monkeypatch.setattr(trial, "unrolled_size", lambda parts: 1)


def left_out(kernels):
    assert {*kernels} == {*NAMES}
    return {name: text for name, text in kernels.items() if text.startswith("left out; ")}


def test_a_kernel_without_which_the_step_is_faster_is_left_out_and_what_remains_is_timed(tuned, all_right):
    found, kernels = tuned({"fused_batch_norm": 2.0, "augment": 0.5, "pgd_step": 1.25})
    assert left_out(kernels) == {"augment": "left out; without it: 2.00 x the speed"}
    assert kernels["fused_batch_norm"] == "stays; without it: 0.50 x the speed"
    assert kernels["start_point"] == "stays; without it: 1 x the speed"
    *_, whole, mixed = found
    assert (whole.form, whole.ratio[1]) == (WHOLE, 1.25)
    assert (mixed.form, mixed.ratio[1]) == (replace(WHOLE, without=("augment",)), 2.5)


def test_nothing_is_left_out_of_kernels_that_all_gain_nor_tried_again(tuned, all_right):
    found, kernels = tuned(dict.fromkeys(NAMES, 1.5))
    assert left_out(kernels) == {} and [one.form for one in found] == [PLAIN, WHOLE]


def test_what_was_right_before_is_not_tried_again_and_what_failed_is(tuned, all_right, monkeypatch):
    found, _ = tuned(dict.fromkeys(NAMES, 1.5))
    again, sizes = [], []
    monkeypatch.setattr(search, "_by_kernels", lambda setting, right, found, advance: (found[-1].form, {}))
    monkeypatch.setattr(trial.Trial, "of", lambda self, form: again.append(form) or replace(found[1], form=form))
    for before in (found, [found[0], replace(found[1], problem="fails: the disk was full")]):
        assert try_all(SETTING, lambda share: None, before, lambda so_far: sizes.append(len(so_far)))[0] == found
    assert again == [WHOLE] and sizes == [2, 2]


def test_of_kernels_that_all_lose_none_is_left(tuned, all_right):
    found, kernels = tuned(dict.fromkeys(NAMES, 0.5))
    assert {*left_out(kernels)} == {*NAMES} and [one.form for one in found] == [PLAIN, WHOLE]


LARGE, SMALL = (64, 32, 32), (512, 4, 4)


def test_a_shape_without_which_the_step_is_faster_is_left_to_pytorch(tuned, all_right):
    of_shapes = {"fused_batch_norm@64x32x32": 1.25, "fused_batch_norm@512x4x4": 0.8}
    found, kernels = tuned({"fused_batch_norm": 2.0, "augment": 0.5, **of_shapes}, [LARGE, SMALL])
    assert kernels["fused_batch_norm"] == "stays; without it: 0.50 x the speed"
    assert kernels["fused_batch_norm@64x32x32"] == "stays; without it: 0.80 x the speed"
    assert kernels["fused_batch_norm@512x4x4"] == "left out; without it: 1.25 x the speed"
    assert [*kernels] == [*NAMES, "fused_batch_norm@64x32x32", "fused_batch_norm@512x4x4"]
    *_, mixed, best = found
    assert (mixed.form.without, mixed.ratio[1]) == (("augment",), 2.0)
    assert (best.form.without, best.ratio[1]) == (("augment", "fused_batch_norm@512x4x4"), 2.5)


@pytest.mark.parametrize("gains", [{"fused_batch_norm": 0.5}, {"fused_batch_norm": 2.0, "augment": 0.25}])
def test_shapes_are_tried_where_the_fused_batch_norm_stays_in_the_fastest_form_alone(tuned, all_right, gains):
    _, kernels = tuned({**gains, "fused_batch_norm@512x4x4": 0.9}, [SMALL])
    assert ("fused_batch_norm@512x4x4" in kernels) == (gains["fused_batch_norm"] > 1)


def test_at_last_the_fastest_form_is_tried_with_another_stem(tuned, all_right):
    *_, whole, padded = tuned({"fused_batch_norm": 2.0}, stems=[8], stem_gain=1.5)[0]
    assert (whole.form, whole.ratio[1]) == (WHOLE, 2.0)
    assert (padded.form, padded.ratio[1]) == (replace(WHOLE, stem_channels=8), 3.0)


def test_a_stem_that_stays_as_it_is_is_not_tried(tuned, all_right):
    """The digits' images have one channel already."""
    found, _ = tuned({"fused_batch_norm": 2.0}, stems=[1], stem_gain=1.5)
    assert [one.form for one in found] == [PLAIN, WHOLE]


def refuse(*_, **__):
    raise UnsupportedInput("x is not dense")


def pale(*args, **settings):
    return TRITON.augment(*args, **settings) / 2


def test_kernels_that_are_wrong_or_fail_are_left_out_and_named_and_the_others_stay(tuned, monkeypatch):
    monkeypatch.setitem(IMPLEMENTATIONS, "triton", replace(TRITON, pgd_step=refuse, augment=pale))
    gains = {"fused_batch_norm": 2.0, "pooled_features": 0.5}
    found, kernels = tuned(gains)
    lost = left_out(kernels)
    assert lost.pop("augment").startswith("left out; alone: differs from the definition: images off by 0.")
    assert lost == {
        "pgd_step": "left out; alone: fails: UnsupportedInput: x is not dense",
        "pooled_features": "left out; alone: 0.50 x PyTorch's speed",
    }
    assert kernels["fused_batch_norm"] == "stays; alone: 2.00 x PyTorch's speed"
    *_, whole, mixed = found
    assert whole.problem == "fails: UnsupportedInput: x is not dense"
    assert mixed.form == replace(WHOLE, without=("pgd_step", "pooled_features", "augment"))
    assert mixed.problem is None and mixed.ratio[1] == 2


def test_what_was_found_stays_where_kernels_cannot_be_tried_one_by_one(tuned, all_right, monkeypatch):
    build_once = trial.Trial.__init__

    def fails(self, setting, right, form):
        if form.kernels == "triton":
            raise torch.OutOfMemoryError("no memory")
        build_once(self, setting, right, form)

    monkeypatch.setattr(trial.Trial, "__init__", fails)
    found, kernels = tuned({})
    assert kernels == {} and [one.form for one in found] == [PLAIN, WHOLE]


def test_the_step_of_mixed_kernels_is_that_of_those_that_it_has_bit_by_bit():
    """On a CPU kernels are their twins. Fused batch-norms sum in another order than PyTorch's layer by layer."""
    alone = {name: replace(WHOLE, without=tuple(other for other in NAMES if other != name)) for name in NAMES}
    plain, whole = trained(SETTING, PLAIN), trained(SETTING, WHOLE)
    for name, form in alone.items():
        kernels = kernels_of(form)
        assert [one for one in NAMES if getattr(kernels, one) is getattr(TRITON, one)] == [name]
        assert kernels.name == f"triton without {' and '.join(form.without)}"
        (losses, state), (right, its) = trained(SETTING, form), whole if name == "fused_batch_norm" else plain
        assert losses == right and all(torch.equal(state[key], value) for key, value in its.items())
