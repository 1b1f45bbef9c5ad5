"""A small net with images and labels, and the standard's attacks cut down."""

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.attacks import shorten


@pytest.fixture
def short_attacks(monkeypatch):
    """The standard's attacks, cut down to a fraction of their work."""
    shorten(
        monkeypatch, {"apgd-ce": {"steps": 5}, "apgd-t": {"steps": 2}, "fab-t": {"steps": 2}, "square": {"queries": 30}}
    )


@pytest.fixture
def net() -> nn.Module:
    """10 classes for images [N, 3, 8, 8]."""
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(20, 3, 8, 8)


@pytest.fixture
def labels(net, images) -> Tensor:
    """What the net says, but for the first image."""
    y = net(images).argmax(1)
    return torch.cat([(y[:1] + 1) % 10, y[1:]])
