"""AutoAttack beside pyautoattack: both get the same images in turns, and counts come before times."""

import pytest
import torch

from bench.autoattack import __main__ as bench
from bench.common.rows import read_rows
from fastarat.evaluation.autoattack.checks import STANDARD

EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
SMOKE = ("--smoke", "--device", "cpu")


@pytest.fixture
def engines(monkeypatch) -> list[tuple[str, str, list[int], int]]:
    """Both engines break the first of their images with each attack; the list fills with what they are given."""
    seen = []

    def engine(which: str):
        def run(case, name, rows, seed):
            seen.append((which, name, rows.tolist(), seed))
            x_adv = case.images[rows].clone()
            anything = torch.rand(200, *x_adv.shape[1:]) * torch.rand(200, 3, 1, 1)
            x_adv[0] = anything[case.model(anything).argmax(1) != case.labels[rows[0]]][0]
            return x_adv

        return run

    monkeypatch.setitem(bench.SMOKE, "eps_255", 255.0)
    monkeypatch.setattr(bench, "RUNS", {which: engine(which) for which in bench.ENGINES})
    monkeypatch.setattr(bench, "package", lambda: None)
    return seen


def test_a_row_for_each_attack_and_one_for_all(engines, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert bench.main([*SMOKE, "--turns", "2", "--rows", str(path)]) == 0
    rows = list(read_rows(path))
    assert [row["attack"] for row in rows] == [*STANDARD, "whole"]
    for row in rows:
        assert row.keys() >= EVERY
        assert row["benchmark"] == "autoattack" and row["correct"] and row["dataset"] == "random"
        assert row["num_images"] == row["clean"] == 6 and not row["unconfirmed"]
        assert row["robust"] == row["pyautoattack_robust"] and row["flags_differ"] == [0, 0]
        assert 0 < row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    assert rows[-1]["seconds"] == pytest.approx([sum(row["seconds"][turn] for row in rows[:-1]) for turn in (0, 1)])
    assert rows[-1]["robust"] == rows[-2]["robust"] != rows[-1]["attacked"] == [6, 6]
    assert "AutoAttack (linf) of 6 images of random, 6 right" in capsys.readouterr().out


def test_both_attack_the_same_images_in_turns(engines):
    assert bench.main([*SMOKE, "--turns", "2", "--attacks", "apgd-ce", "square"]) == 0
    order = [(which, name, seed) for which, name, _, seed in engines]
    first, second = ("fastarat", "pyautoattack"), ("pyautoattack", "fastarat")
    assert order == [
        *((which, name, 0) for name in ("apgd-ce", "square") for which in first),
        *((which, name, 1) for name in ("apgd-ce", "square") for which in second),
    ]
    rows = [given for _, _, given, _ in engines]
    assert rows[0::2] == rows[1::2] and rows[2] == rows[0][1:]


def test_what_one_holds_for_broken_the_other_still_attacks(engines, monkeypatch):
    idle = {**bench.RUNS, "pyautoattack": lambda case, name, rows, seed: case.images[rows]}
    monkeypatch.setattr(bench, "RUNS", idle)
    assert bench.main([*SMOKE, "--turns", "1", "--json"]) == 0
    assert all(given == engines[0][2] for _, _, given, _ in engines)


def test_too_many_robust_images_are_wrong_and_so_are_images_outside_the_ball(engines, monkeypatch, capsys):
    def idle(case, name, rows, seed):
        return case.images[rows]

    def far(case, name, rows, seed):
        return 40 * torch.rand_like(case.images[rows]) - 20

    monkeypatch.setattr(bench, "RUNS", {**bench.RUNS, "fastarat": idle})
    assert bench.main([*SMOKE, "--turns", "1", "--attacks", "apgd-ce"]) == 1
    assert "apgd-ce: wrong: 0 unconfirmed" in capsys.readouterr().err

    monkeypatch.setattr(bench, "RUNS", {"fastarat": far, "pyautoattack": idle})
    assert bench.main([*SMOKE, "--turns", "1", "--attacks", "apgd-ce"]) == 1
    assert "apgd-ce: wrong: 0 unconfirmed" not in capsys.readouterr().err


def test_parts_of_what_is_needed_are_asked_for(capsys):
    for flags, problem in (
        (["--device", "cpu"], "--model and --data: give both, or --smoke"),
        ([*SMOKE, "--turns", "0"], "--turns is 0"),
        (["--device", "cpu", "--model", "nowhere", "--data", "digits"], "nowhere does not exist"),
    ):
        assert bench.main(flags) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.slow
def test_pyautoattack_itself_agrees(capsys):
    pytest.importorskip("pyautoattack")
    assert bench.main([*SMOKE, "--turns", "1"]) == 0
