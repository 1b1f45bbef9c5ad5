"""A campaign ends in time with all that it could measure, whatever its stages do, and goes on where it ended."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bench.campaign import __main__ as campaign
from bench.campaign import run as campaign_run
from bench.campaign.files import MOST_BYTES, rows_in
from bench.campaign.stages import BUDGET, Stage
from bench.common.processes import run_in_time
from bench.common.rows import base_row, write_row

ROOT = Path(__file__).parents[3]
EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}


def stage(name, code, seconds=60.0, least=0.0, **options):
    """A stage that runs a line of Python."""
    return Stage(name, (sys.executable, "-c", code), seconds, least, **options)


def shell(name, script, seconds=60.0, least=0.0, **options):
    """A stage that runs a script of the shell, which starts at once, also on a busy machine: for limits of seconds."""
    return Stage(name, ("sh", "-c", script), seconds, least, **options)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Call the campaign with these stages: its exit code, results by stage, and what it said."""
    monkeypatch.setattr(campaign_run, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("FASTARAT_COMMIT", "0123456789ab")  # for a copy without history

    def run(*given, out="out", budget=300.0, state="state"):
        monkeypatch.setattr(campaign, "stages", lambda setting: list(given))
        shown = []
        monkeypatch.setattr(campaign, "_print", lambda results, *rest: shown.extend(results))
        flags = ["--budget", str(budget), "--out", str(tmp_path / out), "--state", str(tmp_path / state)]
        code = campaign.main([*flags, "--device", "cpu", "--smoke"])
        return code, {result.stage: result for result in shown}, capsys.readouterr().err

    return run


def test_a_stage_that_fails_or_crashes_is_a_row_that_says_why_and_the_rest_runs(call, tmp_path):
    code, results, _ = call(
        stage("good", "print('12 images/s')"),
        stage("bad", "import sys; print('half way'); sys.exit('out of luck')"),
        stage("crash", "import os, signal; print('a fault', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"),
        Stage("absent", ("/no/such/program",), 20, 0),
        stage("missing", "raise SystemExit(1)", lacks="no --golden FOLDER"),
        stage("last", "print('still here')"),
    )
    assert code == 1
    assert {name: (r.state, r.headline) for name, r in results.items()} == {
        "good": ("done", "12 images/s"),
        "bad": ("failed", "code 1: out of luck"),
        "crash": ("failed", "signal 11: a fault"),
        "absent": ("failed", "code 127: cannot start /no/such/program: No such file or directory"),
        "missing": ("left out", "no --golden FOLDER"),
        "last": ("done", "still here"),
    }
    rows = {row["stage"]: row for row in rows_in(tmp_path / "out")}
    assert rows.keys() == results.keys() - {"missing"}
    assert all(row.keys() >= EVERY for row in rows.values())
    assert rows["bad"]["last_line"] == "out of luck" and not rows["bad"]["correct"] and rows["good"]["correct"]
    assert (tmp_path / "state" / "logs" / "bad.log").read_text() == "half way\nout of luck\n"


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(call, tmp_path):
    spawns = "trap '' TERM; sleep 60 & echo $!; wait"
    # The campaign's own grace is a twelfth of its budget.
    code, results, _ = call(shell("hangs", spawns, seconds=0.7), stage("last", "print('here')"), budget=6)
    assert code == 1
    assert results["hangs"].state == "failed" and "did not end within 1 s" in results["hangs"].headline
    assert results["last"].state == "done"
    grandchild = int((tmp_path / "state" / "logs" / "hangs.log").read_text())
    assert not is_running(grandchild)


def test_a_signal_that_comes_while_a_stage_starts_leaves_nothing_of_it(tmp_path, monkeypatch):
    started = []

    def interrupted(*command, real=subprocess.Popen, **options):
        started.append(real(*command, **options))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_time(["sleep", "60"], tmp_path / "log", 60, grace_s=10, variables=dict(os.environ))
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0].returncode == -signal.SIGTERM and not is_running(started[0].pid)


def is_running(pid):
    """Whether a process runs; one that has ended and is not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_campaign_ends_in_time_and_says_what_is_open(call, tmp_path):
    code, results, said = call(
        shell("long", "echo 'epoch 3'; exec sleep 60", seconds=900),
        stage("later", "print('never')", seconds=900, least=30),
        budget=1.2,
    )
    assert code == 0
    (row,) = rows_in(tmp_path / "out")
    assert row["limit_s"] < 1.2
    assert (results["long"].state, results["long"].headline) == ("ended in time", "epoch 3")
    assert (results["later"].state, results["later"].is_open) == ("left out", True)
    assert "left · long: at most" in said


def test_the_next_call_goes_on_where_this_one_ended(call, tmp_path):
    counts = "from pathlib import Path; p = Path({!r}); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    runs = [stage(name, counts.format(str(tmp_path / name))) for name in ("first", "second")]
    there = tmp_path / "checkpoint"
    saves = (
        f"trap \"touch '{there}'; echo 'stopped at step 5'; exit 0\" TERM\n"
        f"[ -e '{there}' ] && echo 'clean 84.0 %' && exit\n"
        "echo training; sleep 60 & wait"
    )
    training = shell("training", saves, seconds=0.5, goes_on=True)
    code, results, _ = call(runs[0], training)
    assert code == 0 and results["training"].state == "ended in time"
    assert results["training"].headline == "stopped at step 5"
    # The next call gives its rows elsewhere, and all that was found before with them.
    code, results, _ = call(*runs, training, out="next")
    assert code == 0 and {r.state for r in results.values()} == {"done"}
    assert results["training"].headline == "clean 84.0 %"
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text() == "x"
    states = [(row["stage"], row["state"]) for row in rows_in(tmp_path / "next")]
    assert states == [("first", "done"), ("training", "ended in time"), ("second", "done"), ("training", "done")]


def test_what_was_done_by_another_commit_is_done_again(call, tmp_path, monkeypatch):
    for commit, lines in (("aaaa", 1), ("aaaa", 1), ("bbbb", 2)):
        for module in (campaign, campaign_run):
            monkeypatch.setattr(module, "commit", lambda commit=commit: commit)
        assert call(stage("good", "print('once')"))[0] == 0
        assert (tmp_path / "state" / "logs" / "good.log").read_text() == "once\n" * lines


def test_what_failed_is_tried_again_after_the_others(call, tmp_path):
    broken = stage(
        "broken",
        f"import sys; print('again'); sys.exit(not __import__('os').path.exists({str(tmp_path)!r} + '/fixed'))",
    )
    assert call(broken)[0] == 1
    (tmp_path / "fixed").touch()
    code, results, said = call(broken, stage("new", "print('new')"))
    assert code == 0 and list(results) == ["broken", "new"]
    assert said.index("new: done") < said.index("broken: done")


def test_what_failed_before_and_gets_no_time_is_still_a_failure(call):
    assert call(stage("broken", "raise SystemExit('no')"))[0] == 1
    code, results, _ = call(stage("broken", "raise SystemExit('no')", least=1000))
    assert code == 1 and results["broken"].state == "failed"


def test_rows_committed_for_this_commit_count_as_done(call, tmp_path):
    covers = ({"benchmark": "speed", "variant": "default"}, {"benchmark": "speed", "variant": "published"})
    made = stage("speed", "print('measured')", covers=covers, headline=lambda rows: f"{len(rows)} rows")
    row = base_row("speed", {}, None, device="cpu")
    (tmp_path / "results").mkdir()
    for variant, state, headline in (
        ("default", "failed", "not all of its rows are there and right: measured"),
        ("published", "done", "2 rows"),
    ):
        write_row(tmp_path / "results" / "speed.jsonl", {**row, "correct": True, "variant": variant})
        _, results, _ = call(made, out=f"{variant}-out", state=f"{variant}-state")
        assert (results["speed"].state, results["speed"].headline) == (state, headline)


def test_a_benchmark_that_left_something_out_is_not_done(call):
    budget = stage("kernels", "import sys; print('budget: 3 of 4 cases', sys.argv[1]); print('table')", seconds=40)
    budget = Stage("kernels", (*budget.command, BUDGET), 40, 0)
    _, results, _ = call(budget)
    assert results["kernels"].state == "ended in time" and results["kernels"].is_open


def test_out_gets_few_small_flat_files(call, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("the user's own")
    fills = (
        "from pathlib import Path; out = Path({!r})\n"
        "(out / 'trace.json').write_bytes(bytes({}))\n"
        "(out / 'folder').mkdir()\n"
        "[(out / f'table{{i}}.md').write_text('') for i in range(9)]"
    ).format(str(tmp_path / "out"), MOST_BYTES + 1)
    code, _, said = call(stage("fills", fills))
    assert code == 0, said
    given = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "notes.txt" in given and "campaign.jsonl" in given and len(given) == 1 + 8
    assert not {"trace.json", "folder"} & set(given)
    assert (tmp_path / "state" / "aside" / "trace.json").exists() and "trace.json is too much for --out" in said


def test_every_call_gives_the_files_that_a_stage_made(call, tmp_path):
    makes = "from pathlib import Path; [run] = Path({!r}).iterdir(); (run / 'trace.gz').write_text('spans')"
    profile = stage("profile", makes.format(str(tmp_path / "state" / "runs")), brings=("*.gz",))
    for out in ("first", "second"):
        assert call(profile, out=out)[1]["profile"].state == "done"
        assert (tmp_path / out / "trace.gz").read_text() == "spans"
    assert (tmp_path / "state" / "logs" / "profile.log").read_text() == ""


def test_a_row_that_a_kill_cut_off_does_no_harm(call, tmp_path):
    assert call(stage("good", "print('once')"))[0] == 0
    with (tmp_path / "out" / "campaign.jsonl").open("a") as file:
        file.write('{"benchmark": "campa')
    code, results, _ = call(stage("good", "print('twice')"), stage("new", "print('new')"))
    assert code == 0 and results["good"].headline == "once"
    assert [row["stage"] for row in rows_in(tmp_path / "out")] == ["good", "new"]


@pytest.mark.parametrize("spoilt", [b"not json\n{}\n", b"[1]\n", b'{"benchmark": "\xff"}\n', b"\0\n"])
@pytest.mark.parametrize("folder", ["out", "state/rows", "results"])
def test_a_file_of_rows_that_cannot_be_read_is_one_line_and_exit_code_2(call, tmp_path, folder, spoilt):
    path = tmp_path / folder / "campaign.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(spoilt)
    code, results, said = call(stage("good", "print('once')"))
    assert (code, results) == (2, {})
    assert said == f"bench.campaign: error: {path}, line 1 is no JSON object: mend the line, or move the file away\n"


SPEED = {"benchmark": "throughput", "variant": "default"}


def writes(tmp_path, row, code, unless=""):
    """Python that writes a row, unless its file holds the word `unless`, and then runs `code`."""
    full = {**base_row("throughput", {}, None, device="cpu"), "error": None, **SPEED, **row}
    path = str(tmp_path / "out" / "throughput.jsonl")
    return (
        "import json, sys; from pathlib import Path\n"  # not bench.common.rows, which brings torch
        f"path = Path({path!r})\n"
        f"if {bool(unless)} and path.exists() and {unless!r} in path.read_text(): print('skipped'); sys.exit()\n"
        f"path.open('a').write(json.dumps({full!r}) + '\\n'); print('wrote', flush=True)\n{code}"
    )


@pytest.mark.parametrize(
    ("row", "ends"),
    [
        ({"correct": False, "error": "WRONG: loss", "images_per_s": None}, ("failed", "failed")),
        ({"correct": True, "images_per_s": None}, ("failed", "failed")),
        ({"correct": False, "error": "needs a GPU", "images_per_s": None}, ("failed", "done")),
        ({"correct": True, "images_per_s": 12.0}, ("failed", "done")),
    ],
)
def test_a_stage_that_failed_is_not_done_because_a_later_call_finds_its_bad_rows(call, tmp_path, row, ends):
    # A benchmark that goes on where it was, whatever its rows say.
    speed = stage("speed", writes(tmp_path, row, "sys.exit(1)", unless="throughput"), covers=(SPEED,))
    states, code = [], None
    for _ in range(2):
        code, results, _ = call(speed)
        states.append(results["speed"].state)
    assert tuple(states) == ends and code == (ends[1] == "failed")


def test_committed_rows_that_are_wrong_do_not_make_a_stage_done(call, tmp_path):
    for row, state in (({"correct": False, "images_per_s": None}, "failed"), ({"images_per_s": 5.0}, "done")):
        path = tmp_path / "results" / "throughput.jsonl"
        write_row(
            path, {**base_row("throughput", {}, None, device="cpu"), "error": None, "correct": True, **SPEED, **row}
        )
        assert call(stage("speed", "print('nothing new')", covers=(SPEED,)))[1]["speed"].state == state


def test_without_a_commit_nothing_counts_as_done(call, tmp_path, monkeypatch):
    for module in (campaign, campaign_run):
        monkeypatch.setattr(module, "commit", lambda: None)
    row = {"correct": True, "images_per_s": 12.0, "commit": None}
    for number in (1, 2):
        speed = stage("speed", writes(tmp_path, {**row, "call": number}, ""), covers=(SPEED,))
        code, results, said = call(stage("good", "print('once')"), speed)
        assert code == 0 and {r.state for r in results.values()} == {"done"}
        assert "nothing counts as done" in said
        for name, word in (("good", "once"), ("speed", "wrote")):
            assert (tmp_path / "state" / "logs" / f"{name}.log").read_text() == f"{word}\n" * number
    assert [row["commit"] for row in rows_in(tmp_path / "out")] == [None] * 6
    # Rows of the calls before are no proof that this one made any.
    assert call(stage("speed", "print('nothing new')", covers=(SPEED,)))[1]["speed"].state == "failed"


@pytest.mark.parametrize(("speed", "state", "is_open"), [(12.0, "done", False), (None, "ended in time", True)])
def test_a_ladder_that_is_told_to_end_finishes_what_is_ready_within_its_time(call, tmp_path, speed, state, is_open):
    full = {
        **base_row("throughput", {}, None, device="cpu"),
        "error": None,
        "correct": True,
        **SPEED,
        "images_per_s": speed,
    }
    (tmp_path / "row").write_text(json.dumps(full) + "\n")
    writes_row = f"cat '{tmp_path}/row' >> '{tmp_path}/out/throughput.jsonl'; echo wrote; exit"
    finishes = f"trap \"echo 'budget: told to end'; sleep 0.4; {writes_row}\" TERM; echo compiling; sleep 60 & wait"
    # The campaign's own grace would be 0.25 s. Told to end after 0.7 s, the ladder has 2 s.
    exit_code, results, _ = call(shell("ladder", finishes, seconds=900, covers=(SPEED,), grace=2), budget=3)
    assert exit_code == 0 and (results["ladder"].state, results["ladder"].is_open) == (state, is_open)
    lines = (tmp_path / "state" / "logs" / "ladder.log").read_text().splitlines()
    assert lines == ["compiling", "budget: told to end", "wrote"]
    (note,) = (row for row in rows_in(tmp_path / "out") if row["benchmark"] == "campaign")
    assert note["seconds"] < note["limit_s"] < 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_campaign_ends_its_stage_and_prints_its_table(tmp_path, monkeypatch, capsys, number):
    sent = []

    @contextmanager
    def progress(name, end):
        """A display that sends the signal once the stage has said something."""
        yield lambda line: line and not sent and (sent.append(name) or signal.raise_signal(number))

    waits = "echo $$; exec sleep 60"
    monkeypatch.setattr(campaign_run, "_progress", progress)
    monkeypatch.setattr(campaign, "stages", lambda setting: [shell("one", waits, 50), shell("two", waits, 50)])
    flags = ["--budget", "60", "--out", str(tmp_path / "o"), "--state", str(tmp_path / "s")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        code = campaign.main([*flags, "--device", "cpu", "--smoke"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 128 + number and sent == ["one"]
    said = capsys.readouterr()
    assert "ended in time" in said.out and said.out.count("interrupted") == 2 and "Traceback" not in said.err
    assert not is_running(int((tmp_path / "s" / "logs" / "one.log").read_text()))


def test_a_call_without_a_gpu_or_with_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "file"
    file.touch()
    good = {"--budget": "60", "--out": str(tmp_path / "out"), "--state": str(tmp_path / "state"), "--device": "cpu"}
    for wrong, words in (
        ({"--budget": "0"}, "--budget is 0.0: give a number above 0"),
        ({"--budget": "nan"}, "--budget is nan: give a finite number above 0"),
        ({"--budget": "1e400"}, "--budget is inf: give a finite number above 0"),
        ({"--budget": "-1"}, "--budget is -1.0: give a number above 0"),
        ({"--out": str(file)}, f"cannot write to --out {file}: File exists: give another folder"),
        ({"--out": str(file / "out")}, "Not a directory: give another folder"),
        ({"--out": "/proc/out"}, "cannot write to --out /proc/out"),
        ({"--state": str(file)}, f"cannot write to --state {file}"),
        ({"--state": str(tmp_path / "out" / "state")}, "lies in --out, which is for results alone: give another"),
        ({"--data": str(tmp_path / "none.tar")}, "there is no file or folder"),
        ({"--data": "cifar11"}, "unknown data set 'cifar11'"),
        ({"--golden": str(tmp_path)}, "holds no golden vectors: give a folder of .npz files"),
        ({"--device": "cuda"}, "this machine has no GPU: give --device cpu, which with --smoke"),
    ):
        flags = [part for pair in {**good, **wrong}.items() for part in pair]
        assert campaign.main([*flags, "--smoke"]) == 2, wrong
        out, err = capsys.readouterr()
        assert words in err and err.count("\n") == 1 and not out, (wrong, err)
    assert campaign.main([part for pair in good.items() for part in pair]) == 2
    assert "a campaign measures a GPU: give --smoke" in capsys.readouterr().err


@pytest.mark.slow
def test_the_smoke_campaign_runs_every_stage_on_a_cpu(tmp_path):
    blocked = tmp_path / "blocked"
    for name in ("tyro", "pooch"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('not on this machine')")
    paths = os.pathsep.join(map(str, (blocked, ROOT, ROOT / "kernels")))
    command = [sys.executable, "-m", "bench.campaign", "--device", "cpu", "--smoke", "--budget", "2400"]
    command += ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(rows_in(tmp_path / "out"))
    states = {row["stage"]: row["state"] for row in rows if row["benchmark"] == "campaign"}
    assert states and set(states.values()) == {"done"}, json.dumps(states, indent=1)
    assert {"environment", "throughput", "kernels", "startup", "loaders", "robustness"} <= {
        row["benchmark"] for row in rows
    }
