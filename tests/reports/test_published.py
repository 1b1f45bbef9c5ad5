"""The paper's points stand beside runs of its data and its ball alone, and are in the picture then."""

import pytest

from fastarat.reports.pictures import as_svg, trade_off
from fastarat.reports.published import PAPER, TITLES, net_beside


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
