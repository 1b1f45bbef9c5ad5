"""The speedrun benchmark: in turns, from the start of a process to a model, and only what reaches the goal counts."""

import json
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import asdict, replace
from statistics import mean
from types import SimpleNamespace

import pytest

from bench.common.rows import RESULTS, read_rows
from bench.speedrun import __main__ as speedrun
from bench.speedrun import one_run, report, suites, tries
from bench.speedrun.suites import SUITES, Goal, ladder
from fastarat.commands.train import parse_arguments
from fastarat.runs.run import Run

EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
CUT = (
    *("--epochs", "1", "--num-train-images", "64", "--attack.steps", "1"),
    *("--evaluation.num-images", "20", "--evaluation.steps", "1"),
)
PLACE = {"gpu": None, "threads": 2, "torch": "2.13.0", "trained_by": "0123", "commit": "0123"}
Ended = namedtuple("Ended", "code last_line")


@pytest.fixture
def cut(monkeypatch):
    """The digits' race, cut to one epoch of few images, with no start before it."""
    monkeypatch.setattr(speedrun, "warm_up", lambda runs: None)
    suite = SUITES["digits"]
    rungs = {"published": (*suite.rungs["published"], *CUT), "default": (*suite.rungs["default"], *CUT)}
    monkeypatch.setitem(SUITES, "digits", replace(suite, goal=Goal(0, 0, "a toy"), rungs=rungs))


@pytest.fixture
def trained(cut, monkeypatch):
    """Trainings that end at once, by name; what their models reach is 95 % and 70 %."""
    begun = []

    def train(training):
        begun.append(f"{training.variant} {training.seed}")
        training.out.mkdir()
        (training.out / one_run.TIMES).write_text(json.dumps({"seconds": 10.0, "cpu_seconds": 20.0}))
        return Ended(0, "")

    def measured(training, num_images, num_autoattack):
        row = {"benchmark": "speedrun", "correct": True, "suite": training.suite, "variant": training.variant}
        row |= {
            "seed": training.seed,
            "config": asdict(training.config.resolved()),
            "num_images": num_images,
            "model": "digits",
        }
        row |= {"num_autoattack": num_autoattack, "clean": 95.0, "autoattack": 70.0, "dataset": "digits"} | PLACE
        return row | json.loads((training.out / one_run.TIMES).read_text())

    monkeypatch.setattr(speedrun, "train", train)
    monkeypatch.setattr(speedrun, "measured_row", measured)
    return begun


def flags(tmp_path, *more):
    return ["--runs", str(tmp_path / "runs"), "--rows", str(tmp_path / "rows.jsonl"), *more]


def test_a_training_is_timed_from_its_start_to_its_model_and_not_repeated(tmp_path, cut, monkeypatch, capsys):
    args = flags(tmp_path, "--variants", "default", "--seeds", "1", "--num-images", "20", "--num-autoattack", "2")
    assert speedrun.main(args) == 0
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.keys() >= EVERY | {"suite", "variant", "seed", "clean", "autoattack", "compile_seconds", "dtype"}
    assert row["correct"] and (row["num_images"], row["num_autoattack"]) == (20, 2)
    assert 0 < row["training_seconds"] < row["seconds"] <= row["process_seconds"] and row["cpu_seconds"] > 0
    out = tmp_path / "runs" / "digits-default-seed0"
    assert not (out / "report.html").exists() and (out / "model.safetensors").exists()
    assert "digits: default reaches the goal in" in capsys.readouterr().out

    monkeypatch.setattr(speedrun, "train", lambda training: pytest.fail("a training that has its row was repeated"))
    assert speedrun.main(args) == 0
    assert list(read_rows(tmp_path / "rows.jsonl")) == [row]
    # More images: the model is there, and only measured.
    assert speedrun.main([*args, "--num-images", "30"]) == 0
    assert [row["num_images"] for row in read_rows(tmp_path / "rows.jsonl")] == [20, 30]


@pytest.mark.slow
def test_a_start_before_the_race_leaves_bytecode_and_no_training(tmp_path):
    one_run.warm_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [one_run.BYTECODE]
    assert any((tmp_path / one_run.BYTECODE).rglob("train_step*.pyc"))


def test_variants_take_turns_seed_by_seed_and_the_time_left_is_said(tmp_path, trained, capsys):
    assert speedrun.main(flags(tmp_path, "--seeds", "2")) == 0
    assert trained == ["published 0", "default 0", "published 1", "default 1"]
    said = capsys.readouterr().err
    assert "training 1 of 4: digits, published, seed 0\n" in said
    assert "attacking 4 of 4: digits, default, seed 1, about 0 s left" in said


def test_what_was_stopped_begins_anew_and_what_is_trained_is_measured(tmp_path, trained, monkeypatch):
    runs = tmp_path / "runs"
    (runs / "digits-published-seed0" / "checkpoints").mkdir(parents=True)
    (runs / "digits-published-seed0.begun").touch()
    seen = []

    def stopped(command, log, limit_s, *, grace_s, variables):
        seen.append((runs / "digits-published-seed0").exists())
        raise KeyboardInterrupt

    def interrupt(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(speedrun, "train", one_run.train)
        patched.setattr(one_run, "run_in_time", stopped)
        assert speedrun.main(flags(tmp_path)) == 130
    assert seen == [False]
    with monkeypatch.context() as patched:
        patched.setattr(speedrun, "measured_row", interrupt)
        assert speedrun.main(flags(tmp_path, "--seeds", "1")) == 130
    assert trained == ["published 0", "default 0"]
    assert speedrun.main(flags(tmp_path, "--seeds", "1")) == 0
    assert trained == ["published 0", "default 0"]


def test_a_training_without_a_model_is_a_row_that_counts_as_none(tmp_path, trained, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(speedrun, "train", lambda training: Ended(1, "fastarat: error: no luck"))
        assert speedrun.main(flags(tmp_path, "--seeds", "1", "--variants", "default")) == 1
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.keys() >= EVERY and (row["correct"], row["error"]) == (False, "fastarat: error: no luck")
    assert "default, seed 0 failed" in capsys.readouterr().err
    assert speedrun.main(flags(tmp_path, "--seeds", "1", "--variants", "default")) == 0
    assert trained == ["default 0"]


def test_no_training_begins_after_the_budget(tmp_path, trained, monkeypatch, capsys):
    times = iter((0, 25, 50, 75))  # the end is at 60
    monkeypatch.setattr(speedrun, "time", SimpleNamespace(monotonic=lambda: next(times)))
    assert speedrun.main(flags(tmp_path, "--budget", "60", "--seeds", "1")) == 1
    assert trained == ["published 0"] and "the budget is over; the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("clean", "robust", "reached"),
    [
        ([90.0], [50.0], True),
        ([89.9], [60.0], False),
        ([90.0, 90.0], [49.0, 50.0], True),  # a standard error of 0.5
        ([90.0, 90.0], [48.9, 49.9], False),
        ([80.0, 80.0, 80.0], [70.0, 70.0, 70.0], False),
        ([], [], False),
    ],
)
def test_a_goal_is_reached_by_all_seeds_together_within_a_standard_error(clean, robust, reached):
    rows = [{"clean": c, "autoattack": r} for c, r in zip(clean, robust, strict=True)]
    assert Goal(90, 50, "a toy").is_reached(rows) is reached


def test_a_tie_in_images_is_no_miss_by_how_percents_were_rounded():
    goal = SUITES["digits"].goal  # (357 + 358 + 358) / 3 of 360 images
    reached, missed = (([100 * n / 360 for n in counts]) for counts in ((357, 357, 358), (357, 357, 357)))
    for clean, says in ((reached, True), (missed, False)):
        rows = [{"clean": round(percent, 3), "autoattack": goal.autoattack} for percent in clean]
        assert goal.is_reached(rows) is says


def row_of(variant, seed, seconds, robust=77.0):
    row = {"benchmark": "speedrun", "suite": "digits", "correct": True, "variant": variant, "seed": seed}
    row |= {"clean": 99.5, "autoattack": robust, "seconds": seconds, "cpu_seconds": 2 * seconds, "model": "digits"}
    rung = (*SUITES["digits"].rungs[variant], "--seed", str(seed), *one_run.ALIKE)
    config = asdict(parse_arguments(rung).config.resolved())
    return row | {"dataset": "digits", "num_images": 360, "num_autoattack": 200, "config": config}


def test_ratios_are_turn_by_turn_and_what_misses_the_goal_has_none():
    rows = [
        row_of("default", 0, 20.0, robust=60.0),
        row_of("published", 1, 60.0),
        row_of("default", 1, 20.0, robust=60.0),
    ]
    rows += [row_of("published", 0, 99.0), row_of("published", 0, 40.0), row_of("published", 2, 77.0)]
    found = report.race_here("digits", rows)
    assert [(row["variant"], row["seed"]) for row in found] == [
        *(("published", seed) for seed in (0, 1, 2)),
        *(("default", seed) for seed in (0, 1)),
    ]
    (_, *published), (_, *default) = report.table("digits", found)[1]
    assert published[3] == "reached" and published[5:] == ["1", "1"]
    assert default[3:] == ["missed", "20.0 ± 0.0", "-", "-"]
    assert report.headline("digits", found).startswith("digits: published reaches the goal in 59.0 s")

    found = report.race_here("digits", [{**row, "autoattack": 77.0} for row in rows])
    assert report.table("digits", found)[1][1][6] == "2.50 (2.00-3.00)"


def failed(variant, seed):
    kept = ("suite", "variant", "seed", "dataset", "config")
    return {name: row_of(variant, seed, 1.0)[name] for name in kept} | {"correct": False}


def test_a_seed_that_fails_keeps_its_variant_from_the_goal_until_it_is_trained():
    rows = [row_of("published", 0, 60.0), row_of("fast", 0, 20.0), failed("fast", 1)]
    found = report.race_here("digits", rows)
    published, fast = report.table("digits", found)[1]
    assert published[4] == "reached" and fast[1:5] == ["2", "99.5", "77.0", "missed: 1 failed"] and fast[6] == "-"
    assert report.headline("digits", found).startswith("digits: published reaches the goal")
    found = report.race_here("digits", [*rows, row_of("fast", 1, 20.0)])
    assert report.table("digits", found)[1][1][4] == "reached"


def test_rows_of_fewer_images_than_others_do_not_count():
    few = {**row_of("fast", 1, 5.0, robust=100.0), "num_images": 50, "num_autoattack": 10}
    (row,) = report.race_here("digits", [row_of("fast", 0, 20.0), few])
    assert row["seed"] == 0 and "360 test images, 200 of them" in report.caption("digits", [row])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"dataset": "cifar10"}, id="data"),
        pytest.param({"processor": "another"}, id="machine"),
        pytest.param({"config": row_of("default", 0, 1.0)["config"] | {"epochs": 7}}, id="settings"),
    ],
)
def test_rows_that_cannot_stand_beside_the_last_one_are_not_in_its_race(other):
    rows = [row_of("published", 0, 60.0) | other, row_of("published", 1, 40.0), row_of("default", 1, 20.0)]
    assert [row["seed"] for row in report.race_here("digits", rows)] == [1, 1]


def test_the_race_with_the_most_rows_comes_first():
    there = [row_of("published", seed, 60.0) for seed in range(2)]
    few = row_of("published", 0, 90.0) | {"processor": "another"}
    assert report.races_of("digits", [*there, few]) == [there, [few]]


def test_a_training_by_other_settings_is_not_taken_for_this_one(tmp_path, trained, capsys):
    assert speedrun.main(flags(tmp_path, "--seeds", "1")) == 0
    out = tmp_path / "runs" / "digits-default-seed0"
    (out / "config.json").write_text(json.dumps(asdict(parse_arguments(["digits-at"]).config.resolved())))
    capsys.readouterr()
    assert speedrun.main(flags(tmp_path, "--seeds", "1")) == 2
    assert f"{out} is a training by other settings: move it away" in capsys.readouterr().err


def test_a_run_that_no_race_has_begun_stays(tmp_path, trained, capsys):
    run = tmp_path / "runs" / "digits-default-seed0"
    run.mkdir(parents=True)
    (run / "model.safetensors").touch()
    assert speedrun.main(flags(tmp_path, "--seeds", "1")) == 2
    assert f"{run} was there before any race: move it away" in capsys.readouterr().err
    assert (run / "model.safetensors").exists() and not trained


def test_a_training_at_work_stays(tmp_path, trained, capsys):
    run = Run(tmp_path / "runs" / "digits-default-seed0")
    run.path.mkdir(parents=True)
    run.path.with_suffix(".begun").touch()
    run.lock()
    assert speedrun.main(flags(tmp_path, "--seeds", "1")) == 2
    assert "is being trained by another process" in capsys.readouterr().err


def test_rows_of_other_machines_are_no_training_here(tmp_path, trained):
    assert speedrun.main(flags(tmp_path, "--seeds", "1")) == 0
    assert (
        speedrun.main(["--runs", str(tmp_path / "fresh"), "--rows", str(tmp_path / "rows.jsonl"), "--seeds", "1"]) == 0
    )
    assert trained == 2 * ["published 0", "default 0"]


def test_what_autoattack_warned_of_stands_under_the_table():
    rows = [{**row_of("published", seed, 60.0), **PLACE} for seed in range(2)]
    rows[1]["warnings"] = ["it hides its gradient."]
    assert "AutoAttack's warning of published, seed 1: it hides its gradient.\n" in report.as_markdown(rows)


@pytest.mark.parametrize("name", SUITES)
def test_every_rung_is_a_training_and_all_changes_together_are_the_fast_recipe(name):
    suite = SUITES[name]
    configs = {variant: parse_arguments(list(rung)).config for variant, rung in suite.rungs.items()}
    published = configs["published"]
    assert (published.dtype, published.compile, published.kernels) == ("fp32", "eager", "pytorch")
    assert replace(published, dtype="auto", compile="auto", kernels="auto") == configs["default"]
    *_, before, last = configs.items()
    if last[0] == "fast" and before[0] not in suites.ENDS:
        assert replace(before[1], recipe=last[1].recipe) == last[1]
        unlike = [replace(config, recipe="") for config in list(configs.values())[:-1]]
        assert all(unlike.count(config) == 1 for config in unlike)


@pytest.mark.parametrize(("name", "seeds"), [("digits", 3), ("cifar10-tiny", 1)])
def test_a_goal_is_what_the_committed_rows_of_at_have(name, seeds):
    rows = [row for row in read_rows(RESULTS / "robustness.jsonl") if (row["suite"], row["method"]) == (name, "at")]
    suite = SUITES[name]
    assert len(rows) == seeds
    for measure in suites.MEASURES:
        assert getattr(suite.goal, measure) == pytest.approx(mean(row[measure] for row in rows), abs=1e-3)
    if suite.num_images:
        assert (rows[0]["num_images"], rows[0]["num_autoattack"]) == (suite.num_images, suite.num_autoattack)


def test_the_published_figure_is_the_goal_until_the_standard_recipe_has_rows_by_the_standards_attack():
    published, recipe = Goal(83.77, 42.42, "a weaker attack"), "cifar10-resnet18-at"
    row = {"config": {"recipe": recipe}, "dataset": "cifar10", "fidelity": "paper", "correct": True, "seed": 0}
    row |= {"num_images": 10_000, "num_autoattack": 10_000, "clean": 84.0, "autoattack": 47.0}
    others = [row | {"fidelity": "published-code"}, row | {"dataset": "cifar10-jpeg"}, row | {"num_autoattack": 1000}]
    others += [row | {"config": {"recipe": "cifar10-resnet18-arat"}}, row | {"correct": False}]
    assert suites.goal_of(recipe, "cifar10", others, until_then=published) is published
    known = [row | {"clean": 0.0}, row, *others, row | {"seed": 1, "clean": 84.5, "autoattack": 47.1}]
    goal = suites.goal_of(recipe, "cifar10", known, until_then=published)
    assert goal == Goal(84.25, 47.05, f"{recipe}, 2 seeds, in bench/results/robustness.jsonl")


def test_a_ladder_adds_one_change_after_the_other():
    rungs = ladder("at", "at-fast", {"short": ("--epochs", "1"), "wide": ("--batch", "9")})
    assert list(rungs) == ["published", "default", "+ short", "+ wide", "fast"]
    assert rungs["+ wide"] == ("at", "--epochs", "1", "--batch", "9") and rungs["fast"] == ("at-fast",)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--variants", "fats"], "unknown variant of suite digits 'fats'"),
        (["--variants", "default", "--ladder"], "leave --variants out"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--data", "digitz"], "unknown data set 'digitz'"),
        (["--suite", "digit"], "invalid choice: 'digit'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(given, words, tmp_path, capsys):
    assert speedrun.main(flags(tmp_path, *given)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_change_is_tried_on_validation_images_alone(tmp_path, capsys, monkeypatch):
    seen = []

    def reached(run, dataset, images, number, *, name, attack):
        seen.append((len(images.labels), number))
        return {"clean": 90.0, "autoattack": 60.0}

    monkeypatch.setattr(tries, "reached", reached)
    args = ["--validation", "30", "--seeds", "0", "1", "--lines", str(tmp_path / "lines.jsonl")]
    assert tries.main([*args, "--", "digits-at", *CUT]) == 0
    assert seen == [(30, 30), (30, 30)]
    lines = list(read_rows(tmp_path / "lines.jsonl"))
    assert [line["seed"] for line in lines] == [0, 1] and lines[0]["tried"] == ["digits-at", *CUT]
    assert "clean 90.0 ± 0.0, robust 60.0 ± 0.0" in capsys.readouterr().out


def test_trying_nothing_is_one_line(capsys):
    assert tries.main(["--validation", "30"]) == 2
    assert "nothing to try" in capsys.readouterr().err


def test_the_picture_has_a_bar_for_each_variant_and_says_which_misses_the_goal(tmp_path):
    rows = [
        {
            "correct": True,
            "variant": variant,
            "seed": seed,
            "clean": clean,
            "autoattack": 77.0,
            "seconds": seconds + seed,
        }
        for seed in range(2)
        for variant, clean, seconds in (("published", 99.4, 60.0), ("default", 99.4, 30.0), ("fast", 90.0, 12.0))
    ]
    drawn = []
    original = report.figure_of

    @contextmanager
    def figure_of(*args):
        with original(*args) as (figure, axes):
            yield figure, axes
            drawn.extend(text.get_text() for text in axes[0][0].texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "figure_of", figure_of)
        report.picture(tmp_path / "race.png", "digits", rows)
        report.picture(tmp_path / "alone.png", "digits", [row for row in rows if row["variant"] == "default"])
    first, second, third, alone = drawn
    assert alone.startswith("  30.5 ± 0.7 s\n"), "nothing to compare it with"
    assert first.startswith("  60.5 ± 0.7 s\n") and " · misses the goal\n" in third
    assert second.startswith(
        "  30.5 ± 0.7 s · 1.98 (1.97-2.00) times as fast\n  clean 99.4 ± 0.0, AutoAttack 77.0 ± 0.0"
    )
    assert (tmp_path / "race.png").stat().st_size > 5000
