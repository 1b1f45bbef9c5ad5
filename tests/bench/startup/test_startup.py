"""The start-up benchmark: fresh processes, complete rows, and imports that stay light."""

import json

import pytest
import torch

from bench.common.processes import CACHES, Failed
from bench.common.rows import read_rows
from bench.startup import __main__ as startup

EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
SMOKE = ("--device", "cpu", "--smoke")


@pytest.mark.slow
def test_a_start_is_timed_part_by_part_and_measured_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTARAT_COMMIT", "0123456789ab")  # for a copy without history
    path = tmp_path / "rows.jsonl"
    assert startup.main([*SMOKE, "--rows", str(path)]) == 0
    rows = list(read_rows(path))
    cases = [(row["case"], row.get("module") or row["cache"]) for row in rows]
    imports, starts = [("import", module) for module in startup.MODULES], [("first step", c) for c in ("cold", "warm")]
    # Whole starts come first: they are what is wanted most.
    assert cases == starts + imports
    for row in rows:
        assert row.keys() >= EVERY
        assert row["benchmark"] == "startup" and row["correct"] and row["dataset"] == "random"
    for row in rows[2:]:
        assert 0 <= row["s_p20"] <= row["s_p50"] <= row["s_p80"] and row["torch_s"] > 0
    for row in rows[:2]:
        assert list(row["parts_s"]) == ["torch", "fastarat", "data", "net", "first_step"]
        assert row["seconds"] == pytest.approx(sum(row["parts_s"].values()), abs=0.01)
        assert row["second_step_s"] > 0 and row["compile"] == "eager" and row["recipe"] == "digits-arat"
    assert f"digits-arat (eager, pytorch, {rows[0]['dtype']})" in capsys.readouterr().out

    assert startup.main([*SMOKE, "--rows", str(path), "--resume"]) == 0
    assert list(read_rows(path)) == rows
    assert capsys.readouterr().err.count("measured already") == 4


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """Starts whose processes end at once, each noted; `base`: what all rows share."""
    seen = []

    def record(self, *arguments):
        seen.append((arguments, [self.variables[name] for name in CACHES]))
        return {"seconds": 1} if "-m" in arguments else [1, 1]

    def make(*flags, **base):
        monkeypatch.setattr(startup.Starts, "_result", record)
        monkeypatch.setattr(startup.Starts, "_base", lambda self: {"benchmark": "startup", "commit": None, **base})
        return startup.Starts(startup._arguments([*flags]), tmp_path / "caches"), seen

    return make


def test_without_a_commit_nothing_was_measured_already(tmp_path, starts):
    path = str(tmp_path / "rows.jsonl")
    for commit, counts in (("0123456789ab", (4, 0)), (None, (4, 4))):
        for count in counts:
            assert len(list(starts(*SMOKE, "--rows", path, "--resume", commit=commit)[0].rows())) == count


def test_a_gpu_s_time_goes_into_starts_first_and_into_few_imports(starts):
    made, seen = starts("--device", "cpu")
    made.arguments.device = "cuda"
    list(made.rows())
    kinds = ["start" if "bench.startup.in_a_process" in arguments else arguments[-1] for arguments, _ in seen]
    assert kinds[:2] == ["start", "start"] and len(kinds) == 2 + 2 * 5
    assert (
        sum("import fastarat;" in code for code in kinds)
        == sum("import fastarat.training.train;" in c for c in kinds)
        == 5
    )


def test_cold_means_empty_caches_and_warm_those_that_it_left(tmp_path, starts):
    made, seen = starts(*SMOKE)
    rows = list(made.rows())
    assert [row.get("cache") for row in rows] == ["cold", "warm", None, None]
    assert len({tuple(folders) for _, folders in seen}) == 1
    assert not any(tmp_path.iterdir()) and all(folder.startswith(str(tmp_path)) for folder in seen[0][1])


def test_a_start_that_crashes_is_a_row_that_says_so(monkeypatch, capsys):
    def crash(self, *arguments):
        if "bench.startup.in_a_process" in arguments:
            raise Failed("Segmentation fault", -11)
        return [1, 1]

    monkeypatch.setattr(startup.Starts, "_result", crash)
    monkeypatch.setattr(startup.Starts, "_base", lambda self: {"commit": None})
    assert startup.main([*SMOKE, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [(row["correct"], row.get("error")) for row in rows[:2]] == [(False, "Segmentation fault")] * 2


def test_a_budget_leaves_out_what_it_does_not_see_the_end_of(capsys):
    assert startup.main([*SMOKE, "--budget", "0.01"]) == 0
    assert "budget: 0 of 4 rows measured, the rest left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "cuda"], "this machine has no GPU: give --device cpu"),
        (["--recipe", "digit-arat"], "did you mean 'digits-arat'"),
        (["--compile", "fast"], "invalid choice: 'fast'"),
        (["--compile", "graph", "--device", "cpu"], "--compile graph captures a CUDA graph"),
        (["--kernels", "triton", "--device", "cpu"], "--kernels triton: Triton's kernels need a GPU"),
        (["--budget", "0"], "--budget is 0.0: give a number above 0"),
        (["--rows", "."], "cannot write --rows .: Is a directory"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(flags, words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert startup.main([*flags, "--smoke"]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out
