"""AutoAttack's attacks on a GPU: captured they find what they find directly, and nothing between compactions waits."""

import pytest
import torch
from torch import nn

from fastarat.attacks.apgd_search import advance, begin
from fastarat.attacks.cuda_graphs import Captured
from fastarat.evaluation.autoattack import driver as module
from tests.helpers.attacks import autoattacked, broken_by

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EPS = {"linf": 0.03, "l2": 0.2}


@pytest.fixture
def net() -> nn.Module:
    """10 classes for images [N, 3, 8, 8] in float64, on the GPU."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
    return nn.Sequential(*layers).double().cuda().eval().requires_grad_(False)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(40, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).cuda()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_a_captured_attack_ends_in_the_flags_of_the_direct_one(attack, norm, net, images, monkeypatch, capsys):
    settings = {"norm": norm, "eps": EPS[norm], "attacks": (attack,), "batch": 16}
    captured = autoattacked(net, images, net(images).argmax(1), **settings)
    monkeypatch.setattr(module, "graphs_on", lambda device, batch, random: None)
    direct = autoattacked(net, images, net(images).argmax(1), **settings)
    assert 0 < len(direct.rows) < len(images) and "uncaptured" not in capsys.readouterr().err
    # float64: sums in another order differ in the last digits, and may turn one point at its edge.
    assert int((broken_by(captured) != broken_by(direct)).sum()) <= 1


def test_a_model_that_asks_the_device_runs_uncaptured_and_says_so(net, images, capsys):
    def asking(x):
        return net(x) * (1 if x.sum().item() else 2)

    settings = {"norm": "linf", "eps": EPS["linf"], "attacks": ("apgd-ce",), "batch": 40}
    y = net(images).argmax(1)
    found, direct = autoattacked(asking, images, y, **settings), autoattacked(net, images, y, **settings)
    assert capsys.readouterr().err.startswith("the attacks run uncaptured: ")
    assert torch.cuda.current_stream() == torch.cuda.default_stream() and torch.rand(3, device="cuda").max() < 1
    assert int((broken_by(found) != broken_by(direct)).sum()) <= 1


def test_a_replay_never_waits_for_the_device(net, images):
    captured, y = Captured(batch=40), net(images).argmax(1)
    state = begin(net, images, y, y, images, 0.01, "cross-entropy")

    def move(s):
        return advance(net, s, "linf", 0.01, "cross-entropy", 0.25)

    state = captured(("apgd",), move, state)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            state = captured(("apgd",), move, state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not captured.problem
