"""The engine that runs the attacks of pyautoattack."""

import sys

import pytest
import torch
from torch import nn

import fastarat
from fastarat import UserError
from fastarat.evaluation.autoattack import engines

EPS = {"linf": 0.02, "l2": 0.2}


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 10)).eval()


def measured(net: nn.Module, attack: str, norm: str, engine: str) -> fastarat.Evaluation:
    torch.manual_seed(1)
    x = torch.rand(24, 1, 6, 6)
    with torch.no_grad():
        y = net(x).argmax(1)
    return fastarat.evaluate(net, x, y, attack, norm=norm, eps=EPS[norm], engine=engine, batch=16)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["apgd-ce", pytest.param("autoattack", marks=pytest.mark.slow)])
def test_it_leaves_about_as_many_as_ours_and_says_whose_attacks_they_are(net, attack, norm):
    pytest.importorskip("pyautoattack")
    theirs, ours = (measured(net, attack, norm, engine) for engine in ("pyautoattack", "fast"))
    assert theirs.options == ("attacks of pyautoattack",) and list(theirs.flags) == list(ours.flags)
    assert 0 < theirs.robust < 100 and abs(theirs.robust - ours.robust) <= 100 * 2 / 24
    assert theirs.seconds.keys() == ours.seconds.keys() and theirs.warnings == ours.warnings


def test_tracing_and_random_numbers_of_others_are_left_alone(net):
    pytest.importorskip("pyautoattack")
    mine, before = (lambda *event: None), sys.gettrace()
    sys.settrace(mine)
    try:
        measured(net, "apgd-ce", "linf", "pyautoattack")
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)
    numbers = torch.rand(3)
    torch.manual_seed(1)
    torch.rand(24, 1, 6, 6)
    assert torch.equal(torch.rand(3), numbers)


def test_without_the_package_one_line_names_the_extra(net, monkeypatch):
    engines.package.cache_clear()
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r"pip install 'fastarat\[pyautoattack\]'"):
        measured(net, "apgd-ce", "linf", "pyautoattack")
