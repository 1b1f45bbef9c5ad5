"""Locks of files: who has one, until when, and what a disk without them says."""

import os

import pytest

from fastarat.common.locks import NO_LOCKS, is_locked, lock


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
