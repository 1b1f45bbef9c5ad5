"""The paper's points stand beside runs of its data and its ball alone, and are in the picture then."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from fastarat.reports.pictures import accuracy_curves, as_svg, loss_curves, trade_off
from fastarat.reports.published import PAPER, TITLES, net_beside
from fastarat.training.reporting import learning_curves


@pytest.mark.parametrize(
    ("run", "net"),
    [
        (("cifar10", "linf", 8.0, "resnet18"), "resnet18"),
        (("cifar10-jpeg", "linf", 8.0, "wrn-34-10"), "wrn-34-10"),
        (("cifar10-jpeg", "linf", 8.0, "tiny"), "resnet18"),
        (("cifar10", "linf", 4.0, "resnet18"), None),
        (("cifar10", "l2", 8.0, "resnet18"), None),
        (("cifar100", "linf", 8.0, "resnet18"), None),
        (("digits", "linf", 8.0, "digits"), None),
    ],
)
def test_points_stand_beside_the_same_data_and_ball(run, net):
    assert net_beside(*run) == net


def test_the_picture_names_every_point_and_takes_the_colour_of_its_page():
    svg = as_svg(trade_off, {"<b>mine": (80.0, 45.0)}, "wrn-34-10", "PGD-20", alt='"mine" & others')
    assert all(f">{TITLES[name]}<" in svg for name in PAPER["wrn-34-10"]) and "&lt;b&gt;mine" in svg
    assert 'aria-label="&#34;mine&#34; &amp; others"' in svg and "currentColor" in svg and "#000000" not in svg
    assert "the paper" not in as_svg(trade_off, {"mine": (80.0, 45.0)}, None, "PGD-20", alt="mine")


def test_legends_have_names_that_begin_with_a_line_or_have_letters_that_the_font_lacks(tmp_path):
    names = ("_mine", "训练", "__")
    held = {"images": "test", "num_images": 9, "steps": 10, "clean": 80.0, "robust": 40.0}
    lines: list[dict[str, Any]] = [{"epoch": 1, "train": {"loss": 1.0}, "evaluation": held}]
    runs = [SimpleNamespace(name=name, epochs=lines) for name in names]
    with warnings.catch_warnings(action="error"):
        points = as_svg(trade_off, dict.fromkeys(names, (80.0, 45.0)), None, "PGD-20", alt="mine")
        losses, both = (as_svg(draw, runs, alt="mine") for draw in (loss_curves, accuracy_curves))
        learning_curves(tmp_path / "curves.svg", dict.fromkeys(names, lines), "mine")
    assert all(f">{name}<" in points and f">{name}<" in losses for name in names)
    drawn = (tmp_path / "curves.svg").read_text()
    assert all(f">{name}, clean<" in both and f">{name}, clean<" in drawn and f">{name}<" in drawn for name in names)
