"""Compiled code is kept in a folder of the user's, or goes with the process; what the user chose stays known."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fastarat.common.errors import UserError
from fastarat.training.compiling import code_folder
from fastarat.training.compiling.code_folder import cache_folder, keep_caches


@pytest.fixture(autouse=True)
def own_process():
    """A process that has no folder of its own yet."""
    code_folder._for_this_process.cache_clear()
    yield
    code_folder._for_this_process.cache_clear()


def test_compiled_code_is_kept_where_it_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # set first, so that what the product sets is undone
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_caches().is_relative_to(tmp_path) and keep_caches().is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="TORCHINDUCTOR_CACHE_DIR"):
        keep_caches()


@pytest.mark.parametrize("home", ["a home that cannot be written", "no home"])
def test_where_it_cannot_be_kept_it_goes_with_the_process_and_that_is_said(tmp_path, monkeypatch, capsys, home):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    if home == "no home":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    kept_in = cache_folder()
    folder = keep_caches()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder) and not Path("~").exists()
    assert keep_caches() == folder and cache_folder() == kept_in  # tables and times do not go with the process
    (said,) = capsys.readouterr().err.splitlines()
    assert "is not kept for the next run" in said and "set TORCHINDUCTOR_CACHE_DIR" in said


def test_what_torch_sets_is_not_the_choice_of_the_user(tmp_path):
    code = """
import os
import torch._dynamo
from fastarat.training.compiling.code_folder import cache_folder, keep_caches
print(os.environ["TORCHINDUCTOR_CACHE_DIR"], cache_folder(), keep_caches(), cache_folder(), sep="\\n")
"""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "user"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    set_by_torch, *folders = done.stdout.splitlines()
    assert Path(set_by_torch).parent == tmp_path
    assert folders == [str(tmp_path / "user" / "fastarat-compiled")] * 3


@pytest.mark.parametrize(("named", "read"), [("~/code", "home/code"), ("", "cache/fastarat-compiled")])
def test_torch_reads_the_variable_as_fastarat_does(tmp_path, monkeypatch, named, read):
    for name, value in (("HOME", "home"), ("XDG_CACHE_HOME", "cache")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", named)
    assert cache_folder() == tmp_path / read
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == (str(tmp_path / read) if named else None)
