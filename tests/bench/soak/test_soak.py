"""The soak: what is killed and resumed is compared bit by bit with what is left alone."""

import pytest
import torch

from bench.common.differences import _differences
from bench.common.rows import read_rows
from bench.soak import __main__ as soak


@pytest.mark.slow
def test_runs_that_are_killed_lose_no_bit_and_the_row_counts_them(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    assert soak.main(["--smoke", "--rows", str(rows)]) == 0
    (row,) = read_rows(rows)
    assert row["benchmark"] == "soak" and row["kills"] == 2 and row["bits_lost"] == 0 and row["correct"]
    assert "2 kills of 1 run," in capsys.readouterr().out


def test_differences_are_counted_in_bits():
    ours = {"weights": [torch.tensor([1.0, 2.0])], "step": 3, "name": "a"}
    theirs = {"weights": [torch.tensor([1.0, -2.0])], "step": 4, "name": "a"}
    assert sum(_differences(ours, ours)) == 0
    assert sum(_differences(ours, theirs)) == 2  # a sign, and a step
    assert sum(_differences({"a": 1}, {"b": 1})) == 1 and sum(_differences([torch.ones(1)], [torch.ones(2)])) == 1
