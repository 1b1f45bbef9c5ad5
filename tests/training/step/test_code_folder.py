"""Compiled code is kept in a folder of the user's, or goes with the process."""

import os
import tempfile
from pathlib import Path

import pytest

from fastarat.common.errors import UserError
from fastarat.training.step.code_folder import keep_caches


def test_compiled_code_is_kept_where_it_can_be_written(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_caches().is_relative_to(tmp_path) and keep_caches().is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="TORCHINDUCTOR_CACHE_DIR"):
        keep_caches()


@pytest.mark.parametrize("home", ["a home that cannot be written", "no home"])
def test_where_it_cannot_be_kept_it_goes_with_the_process_and_that_is_said(tmp_path, monkeypatch, capsys, home):
    # Set first, so that what the product sets is undone.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    if home == "no home":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = keep_caches()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder) and not Path("~").exists()
    (said,) = capsys.readouterr().err.splitlines()
    assert "is not kept for the next run" in said and "set TORCHINDUCTOR_CACHE_DIR" in said
