"""Pictures of an analysis: what is not defined is left out, and every measure keeps its colour."""

from typing import Any

import pytest

from fastarat.analysis.pictures import layers as report_analysis
from fastarat.common.figures import COLOURS


def result(num_states: int, own: float | None) -> dict[str, Any]:
    """An analysis of two layers, of a method with a conflict of its own or without."""
    layers = {
        "gradient_conflict": {"conv": own, "linear": None},
        "naive_conflict": {"conv": -0.5, "linear": None},
        "clean_adversarial_conflict": {"conv": 0.5, "linear": 0.9},
    }
    means = {"gradient_conflict": own, "naive_conflict": -0.5, "clean_adversarial_conflict": 0.7}
    states = [{"names": ["epoch"], "epoch": i + 1, "means": means, "layers": layers} for i in range(num_states)]
    states[-1] = {**states[-1], "names": ["last"]}
    about = {"run": "runs/one", "method": "at", "model": "tiny", "data": "cifar10", "aligned_layers": ["linear"]}
    return {**about, "states": states}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a result, and returns the two panels and the file."""
    panels = []
    original = report_analysis.finish
    monkeypatch.setattr(report_analysis, "finish", lambda axes, **place: (panels.append(axes), original(axes, **place)))

    def draw(value):
        report_analysis.conflict_picture(tmp_path / "conflict.png", value)
        return panels, tmp_path / "conflict.png"

    return draw


def test_a_method_without_invariance_terms_is_drawn_by_what_it_has(drawn):
    (left, right), file = drawn(result(2, own=None))
    curves = {line.get_label(): line for line in left.get_lines()}
    assert curves["a plain invariance against cross-entropy"].get_color() == COLOURS[1]
    assert list(curves["a plain invariance against cross-entropy"].get_ydata()) == [-0.5]
    assert not any("own" in label for label in curves)
    assert "a plain invariance" in right.get_title()
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_conflict_of_its_own_comes_first_and_takes_the_first_colour(drawn):
    (left, right), _ = drawn(result(2, own=0.25))
    assert left.get_lines()[0].get_color() == COLOURS[0] and list(left.get_lines()[0].get_ydata()) == [0.25]
    assert "own" in right.get_title() and list(right.get_lines()[0].get_xdata()) == [1, 2]


def test_one_state_makes_no_curve_over_training(drawn):
    panels, file = drawn(result(1, own=0.25))
    assert len(panels) == 1 and file.exists()
