"""How commands end, whatever comes: one line, an exit code, and of what nobody foresaw the traceback in a file."""

import errno
import json
import os
import re
import signal
import stat
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bench.common import command as bench_command
from fastarat.__main__ import main
from fastarat.common import processes
from fastarat.common.console import MOST_CHARACTERS, notice, print_json, print_table, progress
from fastarat.common.ending import ended
from fastarat.common.errors import Interrupted, UserError, WorkError
from fastarat.common.signals import ENDING
from tests.helpers.launched import as_launched, fails_with


class Mute(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Where traceback files go."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (TypeError("an array of strange things"), "TypeError: an array of strange things"),
        (MemoryError(), "MemoryError"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (OverflowError("too large"), "OverflowError: too large"),
        (AssertionError(), "AssertionError"),
        (OSError("no file's"), "OSError: no file's"),
        (BrokenPipeError(32, "Broken pipe"), "BrokenPipeError: [Errno 32] Broken pipe"),
        (Mute(), "Mute"),
        (ValueError("x" * 5000), "ValueError: xxx"),
        (ValueError("two\nlines \x1b[31mred"), "ValueError: two lines \\x1b[31mred"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_nobody_foresaw_is_one_line_and_a_file_that_its_owner_alone_may_read(temporary, capsys, error, named):
    assert fails_with(error) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"fastarat: error: {named}") and len(line) < MOST_CHARACTERS and captured.out == ""
    (file,) = temporary.iterdir()
    assert str(file) in line and stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert (text.startswith("Traceback") and "in fails_with" in text) or "in work" in text
    assert type(error).__name__ in text


def test_a_traceback_that_cannot_be_written_takes_nothing_from_the_line(monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    assert fails_with(TypeError("strange")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "TypeError: strange" in line and "No such file or directory" in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("give a file"), 2, "fastarat: error: give a file"),
        (WorkError("the disk\nis full"), 1, "fastarat: error: the disk is full"),
        (Interrupted("stopped at step 7", signal.SIGTERM), 143, "stopped at step 7"),
        (KeyboardInterrupt(), 130, "fastarat: interrupted (SIGINT)"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "fastarat: error: cannot write the output: No space left",
        ),
        (OSError(errno.EIO, "Input/output error"), 1, "fastarat: error: a disk or a terminal has failed: Input/output"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), 1, "fastarat: error: a.png: No such file or dir"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_was_foreseen_needs_no_traceback(temporary, capsys, error, code, line):
    assert fails_with(error) == code
    assert capsys.readouterr().err.startswith(line) and not list(temporary.iterdir())


@pytest.mark.parametrize("command", ["recipes", "eval", "bench"])
def test_every_command_has_this_wall(monkeypatch, capsys, command):
    def strange(*args: object) -> int:
        raise RecursionError("strange")

    if command == "bench":
        assert bench_command.program("bench.kernels")(strange)([]) == 1
        assert capsys.readouterr().err.startswith("bench.kernels: error: RecursionError: strange")
    else:
        module = {"recipes": "recipes", "eval": "evaluate"}[command]
        monkeypatch.setattr(f"fastarat.commands.{module}.run", strange)
        assert main([command]) == 1
        assert capsys.readouterr().err.startswith("fastarat: error: RecursionError: strange")


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN], ids=["in front", "in the background"])
def test_a_signal_ends_work_wherever_it_is_and_leaves_the_handlers_as_they_were(capsys, number, before):
    cleaned = []

    def work() -> int:
        try:
            signal.raise_signal(number)
            return 0
        finally:
            cleaned.append(number)

    earlier = signal.signal(number, before)
    try:
        code = ended("fastarat", work)
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, earlier)
    # nohup, which has SIGHUP ignored, is meant to keep a command alive; a shell's background is not.
    goes_on = number == signal.SIGHUP and before is signal.SIG_IGN
    assert cleaned == [number] and code == (0 if goes_on else 128 + number)
    assert ("interrupted" in capsys.readouterr().err) != goes_on


def test_a_signal_that_comes_while_the_end_is_being_said_leaves_no_traceback(monkeypatch):
    """Of several processes that meet the same error the launcher ends those that are left while they say so."""
    monkeypatch.setattr("fastarat.common.ending.say_to_launcher", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert fails_with(UserError("no such set")) == 128 + signal.SIGTERM


@pytest.mark.parametrize("command", ["eval run", "train digits-at", "data info digits"])
def test_a_working_directory_that_was_deleted_is_told_before_torch_is_there(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr("fastarat.__main__.importlib.import_module", lambda name: pytest.fail(f"{name} is imported"))
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the working directory cannot be used (No such file or directory" in line and "cd to another one" in line


def test_a_command_runs_in_any_thread_where_signals_are_the_caller_s(capsys):
    before = [signal.getsignal(number) for number in ENDING]
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0] and [signal.getsignal(number) for number in ENDING] == before


def test_a_reason_is_whole_or_not_there(tmp_path, monkeypatch):
    file = tmp_path / "error.json"
    as_launched(monkeypatch, file, 1, ours=True)
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(file.exists()))
    assert processes.say_to_launcher("the reason", 1)
    assert seen[0] is False and json.loads(file.read_text())["message"]["message"] == "the reason"


@pytest.mark.parametrize("rank", [0, 1])
def test_under_another_launcher_the_first_process_speaks_and_every_one_leaves_its_reason(
    tmp_path, monkeypatch, capsys, rank
):
    as_launched(monkeypatch, tmp_path / "error.json", rank, ours=False)
    assert fails_with(WorkError("the loss is not finite")) == 1
    assert capsys.readouterr().err == ("fastarat: error: the loss is not finite\n" if rank == 0 else "")
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "the loss is not finite"


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdin", "stdout", "stderr")])
def test_commands_work_without_standard_streams(monkeypatch, closed):
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    assert main(["recipes"]) == main(["recipes", "--json"]) == main(["doctor", "--json"]) == 0
    assert main(["trian"]) == 2
    assert all(getattr(sys, name) is None for name in closed)


def test_no_file_gets_the_number_of_a_closed_stream():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for descriptor in range(3):
            os.close(descriptor)
        taken: list[int] = []
        ended("fastarat", lambda: taken.append(os.open(os.devnull, os.O_RDONLY)) or 0)
        os.write(writing, bytes(taken))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    assert os.read(reading, 1) > bytes([2])
    os.close(reading)


def test_results_whose_reader_has_gone_end_quietly_and_messages_go_on_without_one():
    """As with `| head`; the work after a message that nobody reads is done."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        done = []

        def work() -> int:
            notice("a message")
            done.append(True)
            return 0

        code = ended("fastarat", work)
        code = code or (0 if done else 3) or ended("fastarat", lambda: print("a result") or 0)  # type: ignore[func-returns-value]
        os._exit(code)
    os.close(writing)
    os.close(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_output_on_a_full_disk_is_one_line_that_says_what_helps(monkeypatch, capsys):
    def report() -> int:
        print_json([0] * 10_000)
        return 0

    with Path("/dev/full").open("w") as full:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            assert ended("fastarat", report) == 1
        with suppress(OSError):
            full.close()
    said = capsys.readouterr().err
    assert (
        said
        == "fastarat: error: cannot write the output: No space left on device; free some space, or send it elsewhere\n"
    )


def test_messages_on_a_full_disk_are_lost_and_the_work_goes_on(monkeypatch):
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        notice("a message")
        notice("another, into nowhere by now")


def test_a_file_with_a_hostile_name_is_shown_as_it_is(capsys):
    name = "[red]a[/b]\x1b]0;title\x07\u202egnp.\r\udcff:cat:"
    assert main(["verify", name]) == 2
    (line,) = capsys.readouterr().err.split("\n")[:-1]
    assert "[red]a[/b]\\x1b]0;title\\x07\\u202egnp. \\udcff:cat:" in line and line.isprintable()


def test_a_message_that_is_too_long_keeps_its_beginning_and_its_end(capsys):
    assert fails_with(UserError("no " + "x" * 5000 + " here: give another file")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch("fastarat: error: no x+ … x+ here: give another file", line)
    assert len(line) <= MOST_CHARACTERS + len("fastarat: error: ")


def test_names_in_tables_and_in_progress_are_shown_without_markup_or_escape_sequences(capsys):
    hostile = "a[/b] [red]\x1b[2J:cat:"
    print_table(hostile, ["image", "[i]why"], [[hostile, "two\nlines"]])
    with progress(hostile, 2) as advance:
        advance(2)
    notice(hostile)
    captured = capsys.readouterr()
    shown = "a[/b] [red]\\x1b[2J:cat:"
    assert captured.out.count(shown) == 2 and "[i]why" in captured.out and "two lines" in captured.out
    assert captured.err == f"{shown}\n" and "\x1b" not in captured.out


@pytest.fixture
def launched_here(monkeypatch) -> None:
    """This process's children have been started by a launcher: their parent."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "fastarat")
    monkeypatch.delenv(processes.LAUNCHER, raising=False)
    monkeypatch.setattr(processes, "GRACE_S", 0.1)


def test_a_process_whose_launcher_ended_before_it_could_be_told_of_it_ends(launched_here, monkeypatch):
    monkeypatch.setenv(processes.LAUNCHER, "1")  # which is not its parent
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        processes.end_with_launcher()
        time.sleep(1000)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize("stands_still", [False, True], ids=["hangs", "stands still"])
def test_a_process_that_does_not_end_by_itself_when_its_launcher_is_killed_is_killed_too(launched_here, stands_still):
    """It holds the pipe, whose end is its end; the one between is the launcher."""
    ours, its = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            processes.end_with_launcher()
            os.write(its, b"%d\n" % os.getpid())
            if stands_still:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)
        time.sleep(1000)
    os.close(its)
    process = os.read(ours, 20).decode().strip()
    while stands_still and " T " not in Path(f"/proc/{process}/stat").read_text():
        time.sleep(0.01)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    assert os.read(ours, 1) == b""
    os.close(ours)
