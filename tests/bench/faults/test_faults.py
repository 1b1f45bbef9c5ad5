"""The faults: what is done to two machines, and what the rows say of it."""

import pytest

from bench.common.hosts import hosts
from bench.common.rows import read_rows
from bench.faults import __main__ as faults
from fastarat.common.errors import UserError


@pytest.mark.slow
def test_machines_with_other_settings_end_and_the_row_says_so(tmp_path, capsys):
    try:
        with hosts(2, "probe", "10.76.0"):
            pass
    except UserError as error:
        pytest.skip(str(error))
    rows = tmp_path / "rows.jsonl"
    assert faults.main(["--smoke", "--faults", "another setting", "--rows", str(rows)]) == 0
    (row,) = read_rows(rows)
    assert row["correct"] and row["tries"] == row["as_it_has_to"] == 1 and row["left"] == 0 and row["seconds_p50"] > 0
    assert "process 1 has another optimizer than the first one" in row["said"]
    assert "1 of 1 tries" in capsys.readouterr().out


def test_a_fault_that_is_not_there_is_refused(capsys):
    assert faults.main(["--faults", "earthquake"]) == 2
    assert "no fault is named so" in capsys.readouterr().err


def test_a_row_counts_what_went_otherwise():
    tries = [
        {"seconds": 2.0, "said": "it ends", "bits": None, "left": 0, "correct": True},
        {"seconds": None, "said": "waited in vain", "bits": None, "left": 3, "correct": False},
    ]
    row = faults._summary(faults.FAULTS[0], tries)
    assert (row["tries"], row["as_it_has_to"], row["left"], row["correct"]) == (2, 1, 3, False)
    assert faults.cells(row)[2:5] == ["1 of 2", "2 (2)", "3"]
