"""Why processes failed, and whether it helps to start them again."""

import json
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from fastarat.training.causes import cause_of

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
