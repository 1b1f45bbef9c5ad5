"""The faults: what is done to two machines, and what the rows say of it."""

import pytest

from bench.common.hosts import hosts
from bench.common.rows import read_rows, write_row
from bench.faults import __main__ as faults
from bench.faults.faults import ANOTHER_SETTING, ANOTHER_SETTING_LATE, DISK_FULL, OTHER_IMAGES_LATE, RANK_KILLED
from bench.faults.report import table
from bench.faults.scene import LATEST_S, Try
from fastarat.common.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "said"),
    [
        (
            "another setting",
            {
                ANOTHER_SETTING.name: "process 1 has another optimizer than the first one",
                ANOTHER_SETTING_LATE.name: "this machine has another optimizer than",
            },
        ),
        ("late with other images", {OTHER_IMAGES_LATE.name: "process 1 finds other images in images than"}),
    ],
)
def test_a_machine_with_something_else_is_refused_and_the_rows_say_so(tmp_path, capsys, named, said):
    try:
        with hosts(2, "probe", "10.76.0"):
            pass
    except UserError as error:
        pytest.skip(str(error))
    rows = tmp_path / "rows.jsonl"
    assert faults.main(["--smoke", "--faults", named, "--rows", str(rows)]) == 0
    found = {row["case"]: row for row in read_rows(rows)}
    assert set(found) == set(said)
    for name, row in found.items():
        assert row["correct"] and row["left"] == 0 and row["seconds"] > 0 and 0 <= row["moment"] <= LATEST_S
        assert said[name] in row["said"]
    assert f"{len(said)} of {len(said)} tries as it has to be" in capsys.readouterr().out


def test_a_fault_that_is_not_there_is_refused(capsys):
    assert faults.main(["--faults", "earthquake"]) == 2
    assert "no fault is named so" in capsys.readouterr().err


def test_a_fault_after_which_the_run_does_not_end_in_the_same_bits_is_not_as_it_has_to_be():
    happened = Try(RANK_KILLED, 1.0, 2.0, "process 1 was killed (SIGKILL)")
    assert faults._found(happened, 0, "")["correct"]
    assert not faults._found(happened, 3, "")["correct"] and not faults._found(happened, None, "")["correct"]
    lost = faults._found(Try(RANK_KILLED, 1.0), None, "waited in vain")
    assert not lost["correct"] and lost["error"] == lost["said"] == "waited in vain"


def tried(number: int, **found: object) -> dict:
    row = {"story": "disk", "try": number, "place": 0, "config": {"seed": 0}, "case": DISK_FULL.name, "outcome": "ends"}
    return {**row, "seconds": 2.0, "left": 0, "bits": None, "correct": True, **found}


def test_the_table_counts_every_try_and_of_one_that_was_made_again_the_newest():
    rows = [tried(0, correct=False), tried(1, seconds=None, left=3, correct=False), tried(0), tried(2, seconds=9.0)]
    assert table(rows) == [[DISK_FULL.name, "ends", "2 of 3", "6 (9)", "3", "-"]]


def test_what_has_rows_is_left_out_and_processes_share_the_rest(tmp_path):
    rows = tmp_path / "rows.jsonl"
    flags = ["--faults", "disk", "--tries", "4", "--rows", str(rows)]
    write_row(rows, tried(1, story="the disk fills up"))

    def numbers(*more: str) -> list[int]:
        return [number for _, number in faults._wanted(faults._arguments([*flags, *more]))]

    assert numbers() == [0, 1, 2, 3] and numbers("--resume") == [0, 2, 3]
    assert numbers("--resume", "--share", "1/2") == [0, 2] and numbers("--resume", "--share", "2/2") == [3]
    assert numbers("--resume", "--seed", "1") == [0, 1, 2, 3]
