"""Shapes of maps that tune leaves to PyTorch one by one, and other stems: the step stays the step."""

from dataclasses import replace

import pytest
import torch
from fastarat_kernels.implementations import of_shape

from fastarat.training.choices import Choices
from fastarat.training.tuning import map_shapes as module
from fastarat.training.tuning.map_shapes import map_shapes
from tests.helpers.ladders import setting_of, trained, with_method

LARGE, SMALL = (32, 8, 8), (64, 4, 4)
PLAIN = Choices(dtype="fp64")


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(module, "notice", lines.append)
    return lines


def test_those_of_the_net_are_tried_the_one_with_the_most_elements_first(said):
    # Three layers of each; a map of the first has twice the elements.
    assert map_shapes(setting_of(batch=8, steps=1)) == [LARGE, SMALL] and not said


def test_of_many_those_with_the_most_elements_are_tried_and_it_is_said(said, monkeypatch):
    setting = with_method(setting_of("lbgat", batch=8, steps=1), teacher="tiny")
    of_the_teacher = {(16, 8, 8), (16, 4, 4), (32, 2, 2), (64, 1, 1)}
    assert {*map_shapes(setting)} == {LARGE, SMALL, *of_the_teacher} and not said
    monkeypatch.setattr(module, "MOST_SHAPES", 1)
    assert map_shapes(setting) == [LARGE]
    most = "of the shapes of its maps those with the most elements are tried"
    assert said == [f"fused_batch_norm: {most}, 1 of 6"]


@pytest.mark.parametrize("method", ["arat", "trades", "lbgat"])
@pytest.mark.parametrize("kernels", ["pytorch", "triton"])
def test_a_step_without_a_shape_or_with_another_stem_is_the_step(method, kernels):
    setting, whole = setting_of(method, batch=8, steps=2), replace(PLAIN, kernels=kernels)
    without = (of_shape(SMALL),) if kernels == "triton" else ()
    losses, state = trained(setting, whole)
    for form in (replace(whole, without=without), replace(whole, stem_channels=8)):
        mine, my_state = trained(setting, form)
        # float64: three steps of some thousand operations; no gradient is so near 0 that rounding turns its sign.
        assert mine == pytest.approx(losses, rel=1e-9)
        for name, value in state.items():
            torch.testing.assert_close(my_state[name], value, rtol=1e-8, atol=1e-10)
