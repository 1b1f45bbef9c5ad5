"""The loader benchmark's command: every row says what it was, and what is done is left out."""

import json
import subprocess
import sys

import pytest
import torch

from bench.common.processes import ROOT
from bench.common.rows import read_rows
from bench.loaders import (
    __main__ as loaders,
)
from bench.loaders import (
    report as loaders_report,
)
from tests.helpers.loaders import results
from tests.helpers.optional import needs_dali, needs_ffcv

EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
LOADERS = {"loader", "workers", "stage", "images_per_s", "cpu_s_per_1000", "waiting_share", "size", "stored"}


SMOKE = ["--device", "cpu", "--smoke", "--kinds", "small", "--stored", "raw", "--loaders", "plain", "resident"]


@pytest.fixture
def measured(fake):
    turns = [results(100, 1.0, 0.1)] * 4
    return fake({("plain", "arrays"): turns, ("resident", "arrays"): turns})


def test_the_command_writes_a_row_a_stage_and_prints_a_table(measured, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loaders_report.stdout, "_width", 250)
    path = tmp_path / "rows.jsonl"
    assert loaders.main([*SMOKE, "--rows", str(path)]) == 0
    rows = list(read_rows(path))
    assert [(row["loader"], row["stage"]) for row in rows] == [
        (loader, stage) for loader in ("resident", "plain") for stage in ("first", "steady", "training")
    ]
    for row in rows:
        assert row.keys() >= EVERY | LOADERS and row["benchmark"] == "loaders" and row["dataset"] == "random"
        assert str(tmp_path) not in json.dumps(row) and "/tmp" not in json.dumps(row)
    assert "random at 32x32, whole images; fed training: tiny" in capsys.readouterr().out


def test_resume_leaves_out_what_has_rows_of_this_commit(measured, tmp_path, capsys, monkeypatch):
    path = tmp_path / "rows.jsonl"
    monkeypatch.setenv("FASTARAT_COMMIT", "0123456789ab")
    arguments = [*SMOKE, "--rows", str(path), "--resume"]
    assert loaders.main(arguments) == 0
    before = list(read_rows(path))
    known = before[0]["commit"] is not None
    assert loaders.main([*arguments, "--json"]) == 0
    if known:
        assert list(read_rows(path)) == before and "has rows of this commit" in capsys.readouterr().err
    path.write_text("".join(json.dumps({**row, "correct": False}) + "\n" for row in before))
    measured.turns = {name: [results(100, 1.0, 0.1)] * 2 for name in measured.turns}
    assert loaders.main(arguments) == 0
    assert len(list(read_rows(path))) == 2 * len(before), "a wrong row is no speed"


def test_a_wrong_loader_is_exit_code_1(fake, capsys):
    fake({}, {"plain": "WRONG: pixels differ", "resident": "WRONG: pixels differ"})
    assert loaders.main(SMOKE) == 1
    assert "plain: WRONG: pixels differ" in capsys.readouterr().out


def test_photographs_that_are_not_given_are_said(capsys):
    assert loaders.main(["--device", "cpu", "--kinds", "photos"]) == 0
    found = capsys.readouterr()
    assert "give --photos PATH" in found.err and "Nothing was measured" in found.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--loaders", "ffvc"], "did you mean 'ffcv'"),
        (["--workers", "0"], "give a number above 0"),
        (["--repeats", "1"], "one turn has no spread"),
        (["--seconds", "0"], "give a number above 0"),
        (["--budget", "nan"], "give a finite number"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "digits"], "not of square 8-bit RGB images"),
        (["--photos", "nowhere.tar"], "nowhere.tar"),
        (["--rows", "/dev/null/rows"], "cannot write --rows"),
        pytest.param(
            ["--device", "cuda"],
            "this machine has no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_flag_is_one_line_and_exit_code_2(flags, words, capsys):
    assert loaders.main(["--device", "cpu", "--smoke", *flags]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out


@pytest.mark.slow
@needs_dali
@needs_ffcv
def test_the_smoke_run_times_every_loader_on_every_form_it_reads(tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "bench.loaders", "--device", "cpu", "--smoke", "--rows", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(read_rows(path))
    assert all(row["correct"] and row["images_per_s"] > 0 for row in rows)
    found = {(row["loader"], row["stored"]) for row in rows}
    assert found == {
        *(("resident", "raw"), ("plain", "raw"), ("plain", "png"), ("plain", "jpeg")),
        *(("ffcv", "raw"), ("ffcv", "jpeg"), ("ffcv-own", "raw"), ("ffcv-own", "jpeg")),
        *(("dali", "png"), ("dali", "jpeg")),
    }
    fed = {row["loader"] for row in rows if row["waiting_share"] is not None}
    assert fed == {"resident", "plain", "ffcv", "dali"}
