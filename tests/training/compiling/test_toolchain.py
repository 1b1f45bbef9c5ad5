"""What compiles for a CPU is tried before a run plans by it; what is missing is said with what mends it."""

import shutil
from dataclasses import replace

import pytest

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.errors import UserError
from fastarat.config.recipes import recipe
from fastarat.training.choices import choose_compile, is_timed
from fastarat.training.compiling import toolchain
from fastarat.training.compiling.toolchain import why_no_code
from fastarat.verification.doctor import _compiled_steps
from tests.helpers.optional import needs_compiler

CONFIG = recipe("digits-arat")


@pytest.fixture(autouse=True)
def untried(monkeypatch):
    """A process that has tried no compiler yet, and keeps its code where it may."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    toolchain._why_no_library.cache_clear()
    yield
    toolchain._why_no_library.cache_clear()


def without_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "python_headers", lambda: tmp_path)
    monkeypatch.setattr(toolchain, "compiler", lambda device: "g++")


def with_broken_headers(monkeypatch, tmp_path):
    (tmp_path / "Python.h").write_text("#error of another machine\n")
    monkeypatch.setattr(toolchain, "python_headers", lambda: tmp_path)


def with_program(name):
    return lambda monkeypatch, tmp_path: monkeypatch.setenv("CXX", shutil.which(name))


def in_no_folder(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "below"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_headers, ("Python.h", "install python3-dev")),
        pytest.param(with_broken_headers, ("#error of another machine", "CXX"), marks=needs_compiler),
        (with_program("false"), ("false builds no library", "it ended with 1", "set CXX")),
        (with_program("true"), ("true builds no library", "set CXX")),
        (in_no_folder, ("compiled code cannot be kept in", "set TORCHINDUCTOR_CACHE_DIR")),
    ],
    ids=["no headers", "broken headers", "false", "true", "no folder"],
)
def test_where_nothing_can_be_compiled_auto_is_eager_a_name_is_refused_and_doctor_says_why(
    monkeypatch, tmp_path, spoil, words
):
    spoil(monkeypatch, tmp_path)
    log = ChoiceLog(quiet=True)
    assert choose_compile(CONFIG, "cpu", log) == "eager" and not is_timed(CONFIG, "cpu")
    (choice,) = log.choices
    assert all(word in choice["why"] for word in words), choice["why"]
    with pytest.raises(UserError, match=r"--compile compile: .*--compile eager works without"):
        choose_compile(replace(CONFIG, compile="compile"), "cpu", log)
    finding = _compiled_steps("cpu")
    assert (finding.state, finding.detail) == ("missing", choice["why"])


@needs_compiler
def test_a_compiler_that_works_is_tried_once(monkeypatch):
    assert why_no_code("cpu") == "" and _compiled_steps("cpu").state == "ok"
    monkeypatch.setattr("subprocess.run", None)
    assert why_no_code("cpu") == ""
