"""Files that are whole or not there, and what may be a file or its name."""

import os
import socket
from pathlib import Path

import pytest

from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import (
    append_line,
    as_file_name,
    remove_unfinished,
    require_file,
    write_atomically,
    write_text,
)
from fastarat.common.json_files import read_json


def test_what_is_no_file_is_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "nowhere").symlink_to("missing")
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    kinds = {"fifo": "FIFO", "zero": "device", "socket": "socket", ".": "folder"}
    refusals = {
        **{name: f"is no file but a {kind}" for name, kind in kinds.items()},
        "nowhere": "nowhere is a link to what is not there",
        "missing": "missing does not exist",
    }
    for name, words in refusals.items():
        for use in (require_file, read_json):
            with pytest.raises(UserError, match=words):
                use(Path(name))


@pytest.mark.parametrize(
    "text", ["../../x", "/etc/x", "a\0b", "\ud800", "", ".", "..", "x" * 999, "ü" * 999, "a\x1b[2J"]
)
def test_text_that_becomes_a_name_stays_in_its_folder(tmp_path, text):
    name = as_file_name(text)
    (tmp_path / name).write_text("")
    assert [path.name for path in tmp_path.iterdir()] == [name] and len(name) <= 80


def test_ordinary_names_stay_as_they_are():
    assert as_file_name("photos-320_v1.2") == "photos-320_v1.2"


@pytest.mark.parametrize("process", [os.getpid(), os.getppid(), 999999999], ids=["ours", "another's", "nobody's"])
def test_what_a_killed_process_began_is_removed_whoever_has_its_number_now(tmp_path, process):
    """In a container the next command has the same number."""
    (tmp_path / f".x.json.fastarat-{process}-0123abcd.tmp").write_text("{")
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: append_line(path, {"epoch": 1})])
@pytest.mark.parametrize("take_away", [Path.rmdir, lambda folder: folder.rename(folder.with_name("renamed"))])
def test_a_folder_that_has_gone_is_named_and_no_disk_is_blamed(tmp_path, write, take_away):
    run = tmp_path / "run"
    run.mkdir()
    take_away(run)
    with pytest.raises(WorkError, match=r"x\.json: .*run is not there any more; was it removed or renamed") as error:
        write(run / "x.json")
    assert "disk" not in str(error.value)
    run.touch()  # a file has its name now
    with pytest.raises(WorkError, match="run is not there any more"):
        write(run / "x.json")


def test_a_file_that_is_removed_while_it_is_written_is_said_to_be(tmp_path):
    with pytest.raises(WorkError, match="what had been written of it was removed; let nothing else delete"):
        write_atomically(tmp_path / "x", lambda temporary: temporary.unlink())


def in_place(path: Path) -> None:
    path.write_text("whole")


def anew(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("whole")
    other.replace(path)


@pytest.mark.parametrize("write", [in_place, anew])
def test_what_is_being_written_is_left_alone(tmp_path, monkeypatch, write):
    """Until it is renamed, which is after `os.fsync`."""
    seen, synchronised = [], os.fsync

    def meanwhile(descriptor: int) -> None:
        remove_unfinished(tmp_path)
        seen.append(sorted(path.suffix for path in tmp_path.iterdir()))
        synchronised(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomically(tmp_path / "x.txt", lambda path: (remove_unfinished(tmp_path), write(path))[1])
    assert seen == [[".tmp"], [".txt"]] and (tmp_path / "x.txt").read_text() == "whole"


def test_links_and_folders_of_such_a_name_stay(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".a.fastarat-1-0123abcd.tmp").symlink_to("mine")
    (tmp_path / ".b.fastarat-1-0123abcd.tmp").mkdir()
    os.mkfifo(tmp_path / ".c.fastarat-1-0123abcd.tmp")
    remove_unfinished(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
