"""For every test: one torch thread, fixed seeds, Triton's interpreter; golden vectors and small nets to share."""

import importlib
import os
import pkgutil
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import fastarat_kernels
import pytest
import torch
from torch import Tensor, nn

import fastarat
from fastarat.common.files import write_text
from fastarat.runs.run import Run
from fastarat.training.reporting import learning_curves
from tests.helpers.optional import say_what_brings_them
from tests.helpers.unmeasured import uncounted, uncounted_calls

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start: two tests share a machine's cores
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: kernels run in its interpreter

COMPUTING = ("attacks", "evaluation", "kernels", "models", "training", "verification")
TESTS = Path(__file__).parent
GOLDEN = TESTS.parents[1] / "shared" / "golden"


@pytest.fixture(autouse=True, scope="session")
def untuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No training takes up what whoever runs the tests has tuned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastarat.training.tuning.kept.cache_folder", lambda: tmp_path_factory.getbasetemp() / "untuned")
        yield


@pytest.fixture(autouse=True, scope="session")
def uncounted_libraries() -> Iterator[None]:
    """What parses flags, draws and exports calls itself thousands of times: as long again for the tracer.

    And tyro, which forgets between two calls what docstrings say, would read them for half of its time.
    """
    docstrings = "tyro._docstrings.get_field_docstring"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tyro.cli", "matplotlib.pyplot.subplots", "matplotlib.figure.Figure.savefig", "torch.onnx.export"):
            with suppress(ImportError):  # a machine with a GPU may lack them
                patch.setattr(name, uncounted_calls(pkgutil.resolve_name(name)))
        with suppress(ImportError, AttributeError):  # it is private: another version may have none
            patch.setattr(docstrings, cache(pkgutil.resolve_name(docstrings)))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Importing the packages is counted, and not pytest's search for tests, which would take half as long again."""
    for package in (fastarat, fastarat_kernels) if sys.gettrace() else ():
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with suppress(ImportError):  # without FFCV, DALI or a GPU's libraries
                importlib.import_module(module.name)
    with uncounted():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of what computes much by the same lines, a test's first cell and its last are counted."""
    computing = [item for item in items if item.path.relative_to(TESTS).parts[0] in COMPUTING]
    for _, cells in groupby(computing, lambda item: item.nodeid.partition("[")[0]):
        for item in list(cells)[1:-1]:
            item.add_marker(pytest.mark.no_cover)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Marked no_cover, a test runs without coverage."""
    with uncounted() if item.get_closest_marker("no_cover") else nullcontext():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """After all else: what would bring the tests that this machine could not run."""
    yield
    say_what_brings_them(terminalreporter)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fixed_switches() -> Iterator[None]:
    """What a command sets for its whole process, the next test finds as it was."""
    cudnn: Any = torch.backends.cudnn  # of which types know nothing
    before = cudnn.benchmark, cudnn.allow_tf32
    yield
    if (cudnn.benchmark, cudnn.allow_tf32) != before:
        cudnn.benchmark, cudnn.allow_tf32 = before


@pytest.fixture
def golden() -> Path:
    """The folder of golden vectors; the test is skipped where it is absent."""
    if not GOLDEN.is_dir():
        pytest.skip("shared/golden is not here")
    return GOLDEN


@pytest.fixture
def kit(golden) -> Path:
    """The folder of AutoAttack's golden vectors; the test is skipped where it is absent."""
    if not (golden / "autoattack").is_dir():
        pytest.skip("shared/golden/autoattack is not here")
    return golden / "autoattack"


WRITE_PAGE = "fastarat.commands.train.write_page"


@pytest.fixture(autouse=True, scope="session")
def without_curves() -> Iterator[Callable[[Run], None] | None]:
    """Learning curves take longer to draw than a tiny run to train: most are a file of no picture. Reports too, which
    are left out; the fixture's value is what writes them.

    Processes of their own draw and write them.
    """
    write_page = None
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError):  # a machine with a GPU may lack what parses flags
            write_page = pkgutil.resolve_name(WRITE_PAGE)
            patch.setattr(WRITE_PAGE, lambda run: None)
        patch.setattr("fastarat.training.train.learning_curves", lambda path, *_: write_text(path, "no picture"))
        yield write_page


@pytest.fixture
def with_reports(monkeypatch, without_curves) -> None:
    """A test that asks for this has the reports of its runs written."""
    monkeypatch.setattr(WRITE_PAGE, without_curves)


@pytest.fixture
def with_curves(monkeypatch) -> None:
    """A test that asks for this has the learning curves of its runs drawn."""
    monkeypatch.setattr("fastarat.training.train.learning_curves", learning_curves)


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
