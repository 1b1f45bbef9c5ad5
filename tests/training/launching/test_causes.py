"""Why processes failed, and whether it helps to start them again."""

import json
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from fastarat.common.errors import UserError, WorkError
from fastarat.training.launching.causes import cause_of, raise_why
from tests.helpers.launched import as_launched, fails_with

OF_ANOTHER = "another process has ended: it was killed, or failed for the reason that is said here or on its machine"
UNFORESEEN = "RuntimeError: the device is gone (unforeseen: the traceback is in x; please report it)"


@pytest.mark.parametrize(
    ("exit_code", "text", "may_pass", "in_short"),
    [
        (-signal.SIGKILL, OF_ANOTHER, True, "process 1 was killed (SIGKILL; out of memory?)"),
        (1, OF_ANOTHER, True, "another process has ended"),
        (1, UNFORESEEN, True, UNFORESEEN),
        (1, "cannot write step.pt: No space left on device", False, "cannot write step.pt: No space left on device"),
        (2, "epochs is 0: give 1 or more", False, "epochs is 0: give 1 or more"),
    ],
)
def test_what_a_restart_would_only_meet_again_is_known(tmp_path, exit_code, text, may_pass, in_short):
    (tmp_path / "error.json").write_text(json.dumps({"message": {"message": text}, "code": max(exit_code, 1)}))
    failures: Any = {1: SimpleNamespace(exitcode=exit_code)}
    cause = cause_of(failures, tmp_path)
    assert cause is not None and (cause.may_pass, cause.in_short) == (may_pass, in_short)


def test_processes_that_were_told_to_end_have_no_cause(tmp_path):
    failures: Any = {0: SimpleNamespace(exitcode=128 + signal.SIGTERM), 1: SimpleNamespace(exitcode=-signal.SIGTERM)}
    assert cause_of(failures, tmp_path) is None


def test_of_several_processes_the_launcher_says_what_the_first_to_fail_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where the traceback's file goes
    for rank, error in ((1, TypeError("the reason")), (0, WorkError("another process has ended"))):
        file = tmp_path / "attempt_0" / str(rank) / "error.json"
        file.parent.mkdir(parents=True)
        as_launched(monkeypatch, file, rank, ours=True)
        assert fails_with(error) == 1
        os.utime(file, ns=(0, 2000 - 1000 * rank))
    assert capsys.readouterr().err == ""
    with pytest.raises(WorkError, match=r"TypeError: the reason .*the traceback is in"):
        raise_why({}, tmp_path, "--resume goes on")
    file.write_text(json.dumps({"message": {"message": "give a file"}, "code": 2}))
    os.utime(file, ns=(0, 0))
    with pytest.raises(UserError, match=r"^give a file$"):
        raise_why({}, tmp_path, "--resume goes on")


@pytest.mark.parametrize("cut", [b"", b'{"message": {"mess', b"\xff", b"[]", b'{"code": 2, "message": "text"}'])
def test_a_reason_that_cannot_be_read_hides_no_other_and_is_one_line_itself(tmp_path, cut):
    for rank, text in ((0, cut), (1, b'{"code": 1, "message": {"message": "the reason"}}')):
        file = tmp_path / str(rank) / "error.json"
        file.parent.mkdir()
        file.write_bytes(text)
        os.utime(file, ns=(0, rank))
    with pytest.raises(WorkError, match=r"^the reason$"):
        raise_why({}, tmp_path, "--resume goes on")
    file.unlink()
    with pytest.raises(WorkError, match=r"^a process failed, and what it said of it cannot be read$"):
        raise_why({}, tmp_path, "--resume goes on")


KILLED = r"process 3 was killed \(SIGKILL; out of memory\?\); --resume goes on"
ABORTED = r"process 3 was killed \(SIGABRT; a library failed"


@pytest.mark.parametrize(
    ("number", "said", "reason"),
    [
        (signal.SIGKILL, [], KILLED),
        (signal.SIGKILL, ["another process has ended: look there"], KILLED),
        (signal.SIGABRT, ["another process has ended: look there", "the disk is full"], r"^the disk is full$"),
        (signal.SIGABRT, ["another process has ended: look there"], ABORTED),
        (signal.SIGTERM, ["another process has ended: look there"], "look there"),
    ],
)
def test_of_what_processes_say_and_show_the_cause_is_said(tmp_path, number, said, reason):
    ended_by = {0: 1, 1: -signal.SIGTERM, 3: -number}  # the launcher ends those that are left
    failures: Any = {rank: SimpleNamespace(exitcode=code) for rank, code in ended_by.items()}
    for rank, text in enumerate(said):
        file = tmp_path / str(rank) / "error.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"message": {"message": text}, "code": 1}))
        os.utime(file, ns=(0, rank))
    with pytest.raises(WorkError, match=reason):
        raise_why(failures, tmp_path, "--resume goes on")
