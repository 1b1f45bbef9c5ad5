"""Loaders take turns, are compared turn by turn, and what is wrong or fails gets no speed."""

import json
import runpy
import sys
import time
from dataclasses import asdict, replace

import pytest

from bench.common.processes import Failed, OutOfTime
from bench.loaders import (
    measure as loaders_run,
)
from bench.loaders.measure import LoaderEffort, measure, rows_of
from fastarat.common.errors import UserError
from tests.helpers.loaders import case, results

EFFORT = LoaderEffort(2, 0.1, float("inf"))


def test_loaders_take_turns_and_are_compared_turn_by_turn(of_small, fake, tmp_path):
    names = [("plain", "arrays"), ("ffcv", "raw.beton"), ("plain", "png.tar")]
    faked = fake(
        {
            names[0]: [results(100, 2.0, 0.1), results(200, 1.0, 0.3)],
            names[1]: [results(300, 1.0, 0.02), results(400, 0.1, 0.04)],
            names[2]: [results(50, 4.0, 0.5), results(50, 4.0, 0.5)],
        }
    )
    cases = [case(of_small, *key) for key in (("plain", "raw"), ("ffcv", "raw"), ("plain", "png"))]
    measured = measure(cases, tmp_path, EFFORT, advance=lambda share: None)
    turn = [(task, *name) for name in names for task in ("speed", "training")]
    back = [(task, *name) for name in names[::-1] for task in ("speed", "training")]
    assert faked.order == turn + back
    rows = {(row["loader"], row["stored"], row["stage"]): row for row in rows_of(measured, {})}
    assert len(rows) == 9 and all(row["correct"] and row["turns"] == 2 for row in rows.values())
    steady = rows["ffcv", "raw", "steady"]
    assert (steady["images_per_s"], steady["cpu_s_per_1000"]) == (350, 0.55)
    assert steady["ratios"]["images_per_s"] == {"low": 2.0, "median": 2.5, "high": 3.0}
    assert steady["ratios"]["images_per_cpu_s"] == {"low": 2.0, "median": 6.0, "high": 10.0}
    assert rows["ffcv", "raw", "training"]["waiting_share"] == 0.03
    assert rows["ffcv", "raw", "first"]["first_batch_s"] == 0.5
    assert rows["plain", "png", "steady"]["ratios"] == {} == rows["plain", "raw", "steady"]["ratios"]


def test_a_turn_without_cpu_time_has_no_ratio_of_it(of_small, fake, tmp_path):
    fake({("plain", "arrays"): [results(100, 2.0, 0.1)] * 2, ("ffcv", "raw.beton"): [results(300, 0.0, 0.1)] * 2})
    cases = [case(of_small, "plain", "raw"), case(of_small, "ffcv", "raw")]
    measured = measure(cases, tmp_path, EFFORT, advance=lambda share: None)
    (row,) = [row for row in rows_of(measured, {}) if (row["loader"], row["stage"]) == ("ffcv", "steady")]
    assert row["ratios"].keys() == {"images_per_s"}


def test_a_loader_that_is_wrong_or_fails_gets_no_speed(of_small, fake, tmp_path):
    twice = [results(100, 1.0, 0.1)] * 2
    faked = fake({("plain", "arrays"): twice, ("dali", "png.tar"): [Failed("killed")]}, {"ffcv": "WRONG: all"})
    cases = [case(of_small, *key) for key in (("plain", "raw"), ("ffcv", "raw"), ("dali", "png"))]
    rows = rows_of(measure(cases, tmp_path, EFFORT, advance=lambda share: None), {})
    assert not [task for task in faked.order if task[1] == "ffcv"], "it was timed"
    for row in rows:
        good = row["loader"] == "plain"
        assert row["correct"] == good and (row["images_per_s"] is not None) == good
    assert {row["error"] for row in rows} == {None, "WRONG: all", "killed"}
    assert len(rows) == 9


def test_what_the_budget_does_not_see_twice_has_no_row(of_small, fake, tmp_path):
    once = [results(100, 1.0, 0.1)]
    fake({("plain", "arrays"): once * 2, ("plain", "png.tar"): [*once, OutOfTime()]})
    cases = [case(of_small, "plain", "raw"), case(of_small, "plain", "png")]
    measured = measure(cases, tmp_path, LoaderEffort(3, 0.1, float("inf")), advance=lambda share: None)
    assert rows_of(measured, {}) == []
    measured[0].turns["steady"] *= 2
    assert [row["stage"] for row in rows_of(measured, {})] == ["steady"]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_program_of_a_process_prints_its_result_as_json(of_small, tmp_path, monkeypatch, capsys):
    def run(task, form):
        given = [loaders_run.PROGRAM, task, json.dumps(asdict(form)), "0.1"]
        monkeypatch.setattr(sys, "argv", given)
        runpy.run_module(loaders_run.PROGRAM, run_name="__main__")

    form = case(of_small, "plain", "raw")
    run("check", form)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["differences"]["exact"] == 0
    with pytest.raises(UserError, match=r"no file or folder .*nowhere"):
        run("speed", replace(form, path=str(tmp_path / "nowhere")))


ENDINGS = """#!/bin/sh
[ "$1 $2" = "-m PROGRAM" ] || exit 9
case $3 in
check) echo 'a warning'; echo '{"problem": null}' ;;
speed) echo 'Traceback' >&2; echo 'no file or folder' >&2; exit 1 ;;
*) exit 3 ;;
esac
"""


def test_a_process_that_ends_badly_or_late_says_so(of_small, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(ENDINGS.replace("PROGRAM", loaders_run.PROGRAM))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    form = case(of_small, "plain", "raw")
    processes = loaders_run.Processes(tmp_path, LoaderEffort(2, 0.1, float("inf")))
    assert processes.run("check", form) == {"problem": None}
    for task, problem in (("speed", "no file or folder"), ("training", "ended with code 3")):
        with pytest.raises(Failed, match=problem):
            processes.run(task, form)
    late = loaders_run.Processes(tmp_path, LoaderEffort(2, 0.1, time.monotonic()))
    with pytest.raises(OutOfTime):
        late.run("check", form)
