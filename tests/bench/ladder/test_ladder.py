"""A ladder: what is wrong or fails gets no speed, and the others are compared turn by turn."""

import os
import signal
from dataclasses import replace

import torch

from bench import throughput
from bench.ladder import ladder, turns
from bench.ladder import report as throughput_report
from bench.ladder.ladder import run_ladder
from bench.ladder.turns import LadderEffort
from bench.ladder.variants import NAMES, PLAIN, ladder_of, with_attack
from fastarat.common.turns import ratio_text
from fastarat.training.tuning.subject import FastaratSubject
from tests.helpers.ladders import WRONG, setting_of


def test_a_ladder_has_no_variant_that_its_method_cannot_have():
    assert set(ladder_of(setting_of("arrest"))) == set(NAMES) - set(PLAIN)
    assert set(NAMES) - set(ladder_of(setting_of("trades"))) == {"x-running-bn"}
    assert set(NAMES) - set(ladder_of(setting_of("n-fgsm"))) == {"x-fewer-steps"}
    assert set(NAMES) - set(ladder_of(setting_of("standard"))) == {"x-running-bn", "x-fewer-steps"}


def test_every_variant_is_in_the_ladder_in_its_order():
    assert list(ladder_of(setting_of())) == list(throughput.NAMES)


def rows_of(names, monkeypatch, **wrong):
    """Rows of a small ladder, in which some variants train another setting than they say."""

    def mutated(setting):
        found = ladder_of(setting)
        for name, change in wrong.items():
            build = found[name].builds[""]
            found[name] = replace(found[name], builds={"": lambda s, b=build, c=change: b(c(s))})
        return found

    monkeypatch.setattr(ladder, "ladder_of", mutated)
    (rows,) = run_ladder(
        setting_of(batch=8),
        names,
        LadderEffort(2, 1),
        bandwidth=1e10,
        settings={"attack_steps": None},
        advance=lambda share: None,
    )
    return rows


def test_a_variant_made_wrong_gets_no_speed_and_no_ratio_and_the_others_do(monkeypatch):
    rows = rows_of(["channels-last", "default"], monkeypatch, default=WRONG["a halved learning rate"])
    good, bad = rows
    assert good["correct"] and good["images_per_s"] > 0
    assert not bad["correct"] and bad["error"].startswith("WRONG: ") and "length" in bad["error"]
    assert all(bad[name] is None for name in ("images_per_s", "ms_p50", "mfu", "bandwidth_share", "ratios"))
    columns, cells = throughput_report.columns_of(rows)
    assert "no speed: WRONG" in cells[1] and not any(cell.startswith("1.") for cell in cells[1])
    assert "images/s" in columns


def test_a_variant_that_fails_while_it_is_timed_is_out_and_the_others_go_on(monkeypatch):
    taken = []

    def chunk(subject, feed, setting, steps, real=turns.chunk):
        if isinstance(subject, FastaratSubject):
            taken.append(steps)
            if len(taken) == 2:
                raise RuntimeError("CUDA error: an illegal memory access\nmore lines")
        return real(subject, feed, setting, steps)

    monkeypatch.setattr(turns, "chunk", chunk)
    good, bad = rows_of(["channels-last", "default"], monkeypatch)
    assert bad["error"] == "RuntimeError: CUDA error: an illegal memory access" and bad["images_per_s"] is None
    assert good["correct"] and good["images_per_s"] > 0 and len(taken) == 2


def test_weights_that_are_not_finite_in_the_end_cost_the_speed(monkeypatch):
    def batches(self, real=FastaratSubject.batches):
        for i, batch in enumerate(real(self)):
            yield batch._replace(x=batch.x * float("nan")) if i == 5 else batch

    monkeypatch.setattr(FastaratSubject, "batches", batches)
    (row,) = rows_of(["default"], monkeypatch)
    assert "not finite" in row["error"] and row["images_per_s"] is None


def test_ratios_are_taken_turn_by_turn_and_one_that_leaves_it_open_says_so(monkeypatch):
    speeds = iter([100, 200, 100, 210, 100, 190])  # warm-up, then two turns, the second in reverse
    monkeypatch.setattr(turns, "chunk", lambda *_: ([1.0], float(next(speeds))))
    published, default = rows_of(["published", "default"], monkeypatch)
    # Turns: published 100, default 210; then default 100, published 190.
    assert default["ratios"]["published"] == {"low": 100 / 190, "median": (2.1 + 100 / 190) / 2, "high": 2.1}
    assert published["ratios"]["published"] == {"low": 1, "median": 1, "high": 1}
    assert ratio_text(default["ratios"]["published"]) == "unresolved (0.53-2.10)"
    assert ratio_text({"low": 1.9, "median": 2.0, "high": 2.1}) == "2.00 (1.90-2.10)"
    assert ratio_text({"low": 2.0, "median": 2.0, "high": 2.0}) == "2.00"  # of a single turn
    assert ratio_text({"low": 0.7, "median": 0.8, "high": 0.9}) == "0.80 (0.70-0.90)"


def test_sigterm_ends_the_building_and_what_is_ready_is_timed(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)  # torch's launcher, in a test before, may have left its own

    def compare(subject, *rest, real=ladder.compare):
        if isinstance(subject, FastaratSubject):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(subject, *rest)

    monkeypatch.setattr(ladder, "compare", compare)
    (row,) = rows_of(["channels-last", "default"], monkeypatch)
    assert row["variant"] == "channels-last" and row["images_per_s"] > 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_rows_are_there_before_a_profiler_counts_the_launches(monkeypatch):
    """It may end the process, and hours of turns with it."""
    done = []

    def check_all(rungs, *_):
        rungs["default"].problem = "as it was timed"

    def count_launches(rungs):
        done.append("counted")
        rungs[0].launches = 7

    monkeypatch.setattr(ladder, "_check_all", check_all)
    monkeypatch.setattr(ladder, "time_in_turns", lambda *_: done.append("timed"))
    monkeypatch.setattr(ladder, "count_launches", count_launches)
    monkeypatch.setattr(ladder, "cost_of", lambda setting: None)
    variants, on_gpu = ladder_of(setting_of()), replace(setting_of(), device=torch.device("cuda"))
    monkeypatch.setattr(ladder, "ladder_of", lambda setting: variants)
    found = run_ladder(on_gpu, ["default"], LadderEffort(2, 1), bandwidth=1, settings={}, advance=lambda share: None)
    (row,) = next(found)
    assert done == ["timed"] and row["launches"] is None and row["error"] == "as it was timed"
    assert next(found) == [row | {"launches": 7}] and not list(found)


def test_of_several_forms_the_fastest_counts_and_what_is_wrong_with_the_others_is_kept(monkeypatch):
    def several(setting):
        found = ladder_of(setting)
        build = found["default"].builds[""]

        def fails(setting):
            raise RuntimeError("no such mode")

        builds = {"slow": lambda s: build(with_attack(s, steps=9)), "right": build, "fails": fails}
        return found | {"default": replace(found["default"], builds=builds)}

    monkeypatch.setattr(ladder, "ladder_of", several)
    ((row,),) = run_ladder(
        setting_of(batch=8), ["default"], LadderEffort(2, 1), bandwidth=1e10, settings={}, advance=lambda share: None
    )
    assert row["correct"] and row["compile_mode"] == "right" and row["images_per_s"] > 0
    assert row["modes"]["slow"].startswith("WRONG") and row["modes"]["fails"] == "RuntimeError: no such mode"
