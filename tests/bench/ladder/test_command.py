"""The throughput command: rows say what was measured, what is done is skipped, and what is wrong is one line."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from bench import throughput
from bench.common.rows import read_rows
from bench.ladder import ladder
from bench.ladder.variants import NAMES
from fastarat.common.environment import environment

EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
THROUGHPUT = {
    *("method", "model", "variant", "batch", "dtype", "attack_steps", "images_per_s", "ms_p20", "ms_p50", "ms_p80"),
    *("mfu", "bandwidth_share", "launches", "peak_memory_gb"),
}
FEW = ["published", "captured", "default"]


@pytest.mark.slow
def test_the_smoke_ladder_writes_a_row_a_variant_and_prints_a_table(tmp_path, terminal):
    path = tmp_path / "rows.jsonl"
    arguments = ["--device", "cpu", "--smoke", "--rows", str(path), "--method", "arat", "at", "--variants", *FEW]
    assert throughput.main(arguments) == 0
    rows = list(read_rows(path))
    assert [(row["method"], row["variant"]) for row in rows] == [
        (method, name) for method in ("arat", "at") for name in sorted(FEW, key=NAMES.index)
    ]
    for row in rows:
        assert row.keys() >= EVERY | THROUGHPUT
        assert row["benchmark"] == "throughput" and row["device"] == "cpu" and row["gpu"] is None
        if row["variant"] == "captured":
            assert row["error"] == "needs a GPU" and row["images_per_s"] is None
        else:
            assert row["correct"] and row["images_per_s"] > 0 and 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
    # A share of an H200's peak says nothing of a CPU.
    assert all(row["mfu"] is None for row in rows)
    printed = terminal.readouterr().out
    assert "x published" in printed and "needs a GPU" in printed and "captured" in printed


@pytest.fixture(scope="module")
def smoke_row():
    """What a smoke run of the default prints as JSON."""
    with redirect_stdout(StringIO()) as printed:
        assert throughput.main(["--device", "cpu", "--smoke", "--variants", "default", "--json"]) == 0
    (row,) = json.loads(printed.getvalue())
    return row


def test_json_is_for_programs(smoke_row):
    assert smoke_row.keys() >= EVERY | THROUGHPUT and smoke_row["variant"] == "default"
    assert smoke_row["correct"] and smoke_row["images_per_s"] > 0


def test_resume_skips_ladders_that_have_rows_of_this_commit(smoke_row, tmp_path, monkeypatch, terminal):
    path = tmp_path / "rows.jsonl"
    measured = []
    here = {"commit": "abc", "gpu": "a GPU"}  # which a machine has, and --device cpu does not use

    def measure(setting, names, *rest, **more):
        measured.append(names)
        return [[{**smoke_row, **here, "variant": name} for name in names]]

    monkeypatch.setattr(throughput, "run_ladder", measure)
    monkeypatch.setattr("bench.common.rows.environment", lambda: {**environment(), **here})
    arguments = ["--device", "cpu", "--smoke", "--rows", str(path), "--variants", "default", "--resume"]
    assert throughput.main(arguments) == 0 and throughput.main(arguments) == 0
    rows = list(read_rows(path))
    assert len(rows) == len(measured) == 1
    assert "has rows of this commit" in terminal.readouterr().err
    # A row that says what was wrong is no speed: it is measured again.
    path.write_text(json.dumps(rows[0] | {"correct": False, "images_per_s": None, "error": "WRONG"}) + "\n")
    assert throughput.main(arguments) == 0 and len(measured) == 2
    path.write_text(json.dumps(rows[0]) + "\n")
    # Another variant is wanted: the ladder is measured anew, since ratios are of one run.
    assert throughput.main([*arguments[:-2], "default", "resident", "--resume"]) == 0
    assert len(list(read_rows(path))) == 3 and measured[2:] == [["default", "resident"]]


def test_what_the_budget_does_not_see_is_left_out_and_said(terminal):
    assert throughput.main(["--device", "cpu", "--smoke", "--budget", "0.001"]) == 0
    found = terminal.readouterr()
    assert "left out" in found.err and "longer --budget" in found.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--variants", "strongest"], "unknown variant 'strongest'"),
        (["--model", "resnet19"], "did you mean 'resnet18'"),
        (["--batch", "1"], "give 2 or more"),
        (["--batch", "many"], "invalid int value"),
        (["--attack-steps", "0"], "give a number above 0"),
        (["--repeats", "1"], "one turn has no spread"),
        (["--budget", "0"], "give a number above 0"),
        (["--data", "nowhere"], "nowhere"),
        (["--rows", "/dev/null/rows"], "cannot write --rows"),
        (["--batch", "99999"], "more than the 1437 images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(flags, words, terminal):
    assert throughput.main(["--device", "cpu", "--smoke", *flags]) == 2
    found = terminal.readouterr()
    lines = found.err.strip().splitlines()
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_one_line(terminal):
    assert throughput.main(["--device", "cuda"]) == 2
    assert "this machine has no GPU" in terminal.readouterr().err


def test_a_wrong_variant_is_exit_code_1(monkeypatch, terminal):
    def broken(subject, *rest):
        raise ValueError("WRONG: loss off by 2")

    monkeypatch.setattr(ladder, "compare", broken)
    assert throughput.main(["--device", "cpu", "--smoke", "--variants", "default"]) == 1
    assert "WRONG: loss off by 2" in terminal.readouterr().out


STARTS = """
import importlib.util, runpy, sys
file, folder, elsewhere = sys.argv[1:]
assert importlib.util.find_spec("fastarat") is None
libraries, sys.argv = list(sys.path), [file, "--help"]
for first in (folder, elsewhere):  # as a file is started: its folder comes first; and with another copy installed
    sys.path[:] = [first, *libraries]
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code
    for name in [name for name in sys.modules if name.partition(".")[0] in ("bench", "fastarat", "fastarat_kernels")]:
        assert not str(getattr(sys.modules[name], "__file__", "")).startswith(elsewhere)
        del sys.modules[name]
"""


def test_the_file_starts_from_any_folder_with_the_package_installed_or_not(tmp_path):
    (tmp_path / "fastarat").mkdir()
    (tmp_path / "fastarat" / "__init__.py").write_text("raise ImportError('another copy')")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # Without site, which finds the package; the libraries lie where Python is told.
    environment["PYTHONPATH"] = str(Path(torch.__file__).parents[1])
    file = Path(throughput.__file__)
    command = [sys.executable, "-S", "-c", STARTS, str(file), str(file.parent), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.count("usage: bench.throughput") == 2
    assert "python bench/throughput.py --device cpu" in done.stdout
