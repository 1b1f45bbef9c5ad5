"""For every test: one torch thread, fixed seeds, Triton's interpreter; golden vectors and small nets to share."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from optional import say_what_brings_them
from torch import Tensor, nn

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: kernels run in its interpreter

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Marked no_cover, a test runs without coverage in xdist's workers, too, where pytest-cov starts it twice."""
    if not item.get_closest_marker("no_cover"):
        return (yield)
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """After all else: what would bring the tests that this machine could not run."""
    yield
    say_what_brings_them(terminalreporter)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def golden() -> Path:
    """The folder of golden vectors; the test is skipped where it is absent."""
    if not GOLDEN.is_dir():
        pytest.skip("shared/golden is not here")
    return GOLDEN


class SmallNet(nn.Module):
    """A net as users write them: ordinary layers, float64, every parameter and statistic away from its default."""

    def __init__(self, num_classes: int = 3, channels: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.linear = nn.Linear(channels, num_classes)
        self.double()
        nn.init.uniform_(self.bn.weight, 0.5, 1.5)
        nn.init.normal_(self.bn.bias)
        nn.init.normal_(self.bn.running_mean)
        nn.init.uniform_(self.bn.running_var, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.act(self.bn(self.conv(x))).mean((2, 3)))


@pytest.fixture
def small_net() -> SmallNet:
    """A `SmallNet` of 3 classes for images [N, 1, H, W] in float64, in eval mode."""
    return SmallNet().eval()
