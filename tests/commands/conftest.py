"""Every test is a user in an empty directory, with no data but what the package embeds."""

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.common.hosts import Host
from fastarat.__main__ import main
from fastarat.training.reporting import learning_curves
from tests.helpers.command_line import ONE_EPOCH, TINY, Result, finish, start
from tests.helpers.machines import RUN, two_machines


@pytest.fixture(scope="module", autouse=True)
def data_root(tmp_path_factory) -> Iterator[None]:
    """For what the tests of a file share: a data root with nothing in it, and not the one of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTARAT_DATA", str(tmp_path_factory.mktemp("data-root") / "no-data"))
        yield


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch) -> Path:
    """An empty directory to work in, and a data root of its own with nothing in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTARAT_DATA", str(tmp_path / "no-data"))
    return tmp_path


@pytest.fixture
def fastarat(capsys) -> Callable[..., Result]:
    """`fastarat(*args)` runs a command in this process."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stop:  # --help
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Host]]:
    """Two machines, NET.1 and NET.2."""
    with two_machines() as made:
        yield made


@pytest.fixture(scope="session")
def one_machine(tmp_path_factory) -> Path:
    """The run of four processes of one machine, with a snapshot of each of its two epochs."""
    run = tmp_path_factory.mktemp("one") / "run"
    result = finish(start("train", *RUN, "--procs", "4", "--checkpoint.history", "1", "--out", run))
    assert result.code == 0, result.err
    return run


def _train(run: Path, *settings: str) -> Path:
    with contextlib.redirect_stderr(io.StringIO()):
        assert main(["train", "digits-arat", *settings, "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished run of two epochs on the digits, made once, with its learning curves; a test that changes it takes a
    copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastarat.training.train.learning_curves", learning_curves)
        return _train(tmp_path_factory.mktemp("trained") / "run", *TINY)


@pytest.fixture(scope="session")
def one_epoch(tmp_path_factory) -> Path:
    """A finished run of one epoch on the digits, made once."""
    return _train(tmp_path_factory.mktemp("one-epoch") / "run", *ONE_EPOCH)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the finished run of two epochs, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")
