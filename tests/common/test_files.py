"""Files that others wrote are read with care: what they may be, and how far they are believed."""

import os
import socket
from pathlib import Path

import pytest

from fastarat.common.errors import UserError
from fastarat.common.files import (
    NO_LOCKS,
    as_file_name,
    checksum_of,
    is_locked,
    lock,
    parse_json,
    read_json,
    remove_unfinished,
    require_file,
    write_atomically,
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        b"\xff\xfe",
        "[" * 100_000,
        "[" * 40 + "]" * 40,
        '{"a":' * 500 + "1" + "}" * 500,
        "[NaN]",
        "[-Infinity]",
        "[1e999]",
        "1" + "0" * 400,
        "1" + "0" * 5000,
        str(2**64),
    ],
    ids=lambda text: repr(text)[:12],
)
def test_json_that_nobody_needs_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(ValueError, match=r"^[^\n]{1,200}$"):
        parse_json(text)
    path = tmp_path / "x.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=r"^[^\n]*x\.json cannot be read \([^\n]{1,200}\)$"):
        read_json(path)


def test_other_json_is_what_it_says(tmp_path):
    text = '{"a": [1, -2.5e3, true, null, {"b": "ü"}], "c": 18446744073709551615}'
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    value = {"a": [1, -2500.0, True, None, {"b": "ü"}], "c": 2**64 - 1}
    assert parse_json(text) == value == read_json(tmp_path / "x.json")


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "x.json").write_text("[" + "1," * 100 + "1]")
    with pytest.raises(UserError, match="203 bytes are more than 100"):
        read_json(tmp_path / "x.json", most_bytes=100)


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
        "nowhere": "nowhere does not exist",
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


def test_a_checksum_covers_all_but_itself():
    values = {"a": 1, "b": ["x"]}
    assert checksum_of({**values, "checksum": "old"}) == checksum_of(dict(reversed(values.items())))
    assert checksum_of(values) != checksum_of({**values, "b": ["y"]})


@pytest.mark.parametrize("process", [os.getpid(), os.getppid(), 999999999], ids=["ours", "another's", "nobody's"])
def test_what_a_killed_process_began_is_removed_whoever_has_its_number_now(tmp_path, process):
    """In a container the next command has the same number."""
    (tmp_path / f".x.json.fastarat-{process}-0123abcd.tmp").write_text("{")
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_disk_without_locks_is_told_once_and_used(tmp_path, monkeypatch, capsys, number):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    held = lock(tmp_path / ".lock")
    assert held is not None and is_locked(tmp_path / ".lock") is None
    assert capsys.readouterr().err == f"the disk of {tmp_path} has no locks: start nothing else there meanwhile\n"
    held.close()


def test_a_lock_is_seen_and_ends_with_its_process_and_not_with_the_processes_that_it_forked(tmp_path):
    path, (here, told), (waiting, ended) = tmp_path / ".lock", os.pipe(), os.pipe()
    held = lock(path)
    assert held is not None and is_locked(path) and lock(path) is None
    child = os.fork()
    if child == 0:  # as a worker of PyTorch's loader, which looks for its parent every five seconds
        os.close(ended)
        os.write(told, b"!")
        os.read(waiting, 1)
        os._exit(0)
    os.read(here, 1)
    assert is_locked(path)
    held.close()
    again = lock(path)
    for descriptor in (here, told, waiting, ended):
        os.close(descriptor)
    os.waitpid(child, 0)
    assert again is not None
    again.close()
    assert not is_locked(path)
