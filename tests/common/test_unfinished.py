"""What is being made lies in a folder beside its place, which goes with its process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastarat.common import unfinished


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_there_for_the_block_and_then_gone(tmp_path):
    with unfinished.beside(tmp_path / "new" / "out") as folder:
        (folder / "part").write_text("half")
        assert names(tmp_path / "new") == [folder.name]
    assert names(tmp_path / "new") == []
    with pytest.raises(KeyboardInterrupt), unfinished.beside(tmp_path / "out"):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["new"]


def test_what_is_renamed_stays(tmp_path):
    with unfinished.beside(tmp_path / "out") as folder:
        (folder / "part").write_text("whole")
        folder.rename(tmp_path / "out")
    assert (tmp_path / "out" / "part").read_text() == "whole" and names(tmp_path) == ["out"]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from fastarat.common import unfinished
with unfinished.beside(Path(sys.argv[1])) as folder:
    (folder / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_one_removes_what_a_killed_process_left(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "out")], env=environment, check=False)
    (dead,) = names(tmp_path)
    with unfinished.beside(tmp_path / "other"):
        assert dead in names(tmp_path), "it is another's"
    with unfinished.beside(tmp_path / "out") as folder:
        assert names(tmp_path) == [folder.name]


def test_what_lives_and_what_is_no_such_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / ".out.fastarat-0000000000000000.partial").symlink_to("mine")
    (tmp_path / ".out.fastarat-0000000000000001.partial").write_text("mine")
    (tmp_path / ".out.fastarat-notes.partial").mkdir()
    before = names(tmp_path)
    with unfinished.beside(tmp_path / "out") as living, unfinished.beside(tmp_path / "out") as other:
        assert living.is_dir() and other.is_dir() and living != other
    assert names(tmp_path) == before and names(tmp_path / "mine") == ["file"]
