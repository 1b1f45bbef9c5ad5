"""The small programs that a campaign runs: what the machine is, and golden vectors."""

import pytest
import torch

from bench.campaign import golden, machine
from bench.common.rows import read_rows
from fastarat.verification.compare import Row


def test_the_machine_is_a_row_of_facts_without_a_path_of_it(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert machine.main(["--device", "cpu", "--rows", str(path)]) == 0
    (row,) = read_rows(path)
    assert row["benchmark"] == "environment" and row["correct"] and row["torch"] == torch.__version__
    assert row["findings"]["training step on cpu"] == "ok" and set(row["findings"].values()) <= {"ok", "missing"}
    # A campaign shows the last line.
    assert capsys.readouterr().err.splitlines()[-1].startswith("CPU, ")


def test_a_driver_that_does_not_answer_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.machine_row("cuda", [])["limits"] == {}


@pytest.mark.parametrize(("error", "code", "words"), [(1e-9, 0, "all 4 quantities hold"), (1.0, 1, "4 of 4 fail")])
def test_golden_vectors_are_verified_in_both_precisions(tmp_path, monkeypatch, capsys, error, code, words):
    seen = []

    def verify(file, dtype, device):
        seen.append((file.name, dtype, device.type))
        yield Row("loss", error, 1e-8)

    monkeypatch.setattr(golden, "verify_file", verify)
    for name in ("a.npz", "b.npz", "README.md"):
        (tmp_path / name).touch()
    assert golden.main([str(tmp_path), "--device", "cpu"]) == code
    assert seen == [(n, d, "cpu") for n in ("a.npz", "b.npz") for d in (torch.float64, torch.float32)]
    assert capsys.readouterr().out.splitlines()[-1] == words
