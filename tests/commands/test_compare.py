"""`fastarat compare RUN RUN…` says which differences are beyond noise, over the same images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastarat.reports.facts import facts_of, settings_and_seeds
from tests.helpers.command_line import TINY


def changed(run: Path, **settings: object) -> None:
    """Give the run these settings, as if it had been trained with them."""
    file = run / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.fixture
def runs(trained, tmp_path) -> tuple[Path, Path]:
    """Two copies of a run, without what other tests had measured of it; the second says that its batch was another."""
    without = shutil.ignore_patterns("outcomes")
    first, second = (shutil.copytree(trained, tmp_path / name, ignore=without) for name in ("a", "b"))
    changed(second, batch=63)
    return first, second


def test_runs_are_evaluated_once_and_two_alike_are_said_to_be_equal(fastarat, runs):
    result = fastarat("compare", *runs, "--num-images", "80", "--device", "cpu")
    assert result.code == 0 and "PGD-20 on up to 80 test images of each" in result.err
    said = "robust: a and b: no difference beyond noise is seen on 80 images (0 images right in the first alone, 0"
    assert said in result.out
    assert "McNemar's exact test over the same images, widened for the spread of seeds" in result.out
    assert "a and b have the same weights" in result.err and "no seed is repeated" in result.out
    again = fastarat("compare", *runs, "--json")
    assert again.json["num_images"] == 80 and again.json["num_repeats"] == 0
    assert [row["is_beyond_noise"] for row in again.json["differences"]] == [False, False]
    assert "PGD-20 on up to" not in again.err and "no evaluation of their own" not in result.err


def test_as_many_images_as_are_asked_for_are_compared_whatever_is_kept(fastarat, runs):
    for number in (20, 60):
        result = fastarat("compare", *runs, "--num-images", number, "--device", "cpu")
        assert f"{number} test images of digits under" in result.out and f"up to {number} test images" in result.err
    assert "20 test images of digits under" in (result := fastarat("compare", *runs, "--num-images", "20")).out
    assert "PGD-20 on up to" not in result.err


def test_seeds_of_the_same_settings_stand_together_and_a_copy_is_left_out(fastarat, runs):
    for number, run in enumerate(runs):
        changed(run, batch=64, seed=number)
    result = fastarat("compare", *runs, "--num-images", "40", "--device", "cpu")
    assert "a + b differ by their seeds alone: they stand together, and have no test" in result.out
    assert "no difference" not in result.out
    changed(runs[1], seed=0)
    result = fastarat("compare", *runs, "--json")
    assert result.json["trainings"] == [["a"]] and result.json["differences"] == []
    assert "b has the settings and the seed of another run: it is left out" in result.err
    assert fastarat("report", *runs, "--num-images", "0", "--out", "seeds.html").code == 0
    page = Path("seeds.html").read_text()
    assert (
        "b has the settings and the seed of another run: it is left out" in page and "by their seeds alone" not in page
    )
    changed(runs[1], seed=1)
    assert fastarat("report", *runs, "--num-images", "0", "--out", "seeds.html").code == 0
    assert "a + b differ by their seeds alone: they stand together" in Path("seeds.html").read_text()


def recorded(run: Path, **facts: object) -> None:
    """Give the sessions of the run these facts."""
    file = run / "record.json"
    sessions = json.loads(file.read_text())["sessions"]
    file.write_text(json.dumps({"sessions": [session | facts for session in sessions]}))


ELSEWHERE = {
    "data": "/elsewhere/digits",
    "device": "cuda",
    "loader": "dali",
    "loading": {"workers": 3, "order": "random", "corrupt": "skip", "decode": "gpu"},
}


@pytest.mark.parametrize(
    ("settings", "facts", "are_one"),
    [
        (ELSEWHERE, {}, True),
        ({"dtype": "auto"}, {}, True),
        ({}, {"dtype": "bf16"}, False),
        ({}, {"data": {"name": "digits", "fingerprint": "of others", "labels_fingerprint": "of others"}}, False),
        ({}, {"extra": {"name": "more", "fingerprint": "of more", "images": 9}}, False),
        ({"loading": {"workers": 0, "order": "quasi-random", "corrupt": "fatal", "decode": "cpu"}}, {}, False),
    ],
    ids=["elsewhere", "auto", "bf16", "other images", "extra images", "another order"],
)
def test_seeds_stand_together_wherever_their_images_lay_and_by_the_format_that_trained_them(
    runs, settings, facts, are_one
):
    changed(runs[1], batch=64, seed=1, **settings)
    recorded(runs[1], **facts)
    of_both = settings_and_seeds([facts_of(run, run.name) for run in runs])
    assert (of_both["a"][0] == of_both["b"][0]) == are_one and of_both["b"][1] == 1


def test_extra_images_are_told_by_their_fingerprint(runs):
    for run, place, fingerprint in ((runs[0], "/one/more", "same"), (runs[1], "/two/else", "same")):
        changed(run, batch=64, extra={"data": place, "ratio": 0.5})
        recorded(run, extra={"name": Path(place).name, "fingerprint": fingerprint, "images": 9})
    first, second = (facts_of(run, run.name) for run in runs)
    assert first.is_of_images_of(second)
    recorded(runs[1], extra={"name": "more", "fingerprint": "another", "images": 9})
    assert not first.is_of_images_of(facts_of(runs[1], "b"))


def test_a_run_that_has_not_finished_is_no_other_seed_of_one_that_has(fastarat, runs):
    for number, run in enumerate(runs):
        changed(run, batch=64, seed=number)
    changed(runs[1], epochs=400)
    changed(runs[0], epochs=400)
    (runs[0] / "metrics.jsonl").write_text((runs[0] / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    result = fastarat("compare", *runs, "--num-images", "40", "--json", "--device", "cpu")
    assert result.json["trainings"] == [["a"], ["b"]]


def test_an_evaluation_of_all_test_images_counts_where_more_are_asked_for(fastarat, runs):
    for run in runs:
        assert fastarat("eval", run, "--num-images", "1000", "--steps", "1", "--device", "cpu").code == 0
    result = fastarat("compare", *runs, "--num-images", "1000")
    assert "360 test images of digits under PGD-1" in result.out and "PGD-20 on up to" not in result.err


def test_the_strongest_evaluation_that_all_have_is_compared(fastarat, runs):
    for run in runs:
        assert fastarat("eval", run, "--num-images", "40", "--steps", "2", "--device", "cpu").code == 0
    assert fastarat("eval", runs[0], "--num-images", "40", "--steps", "50", "--device", "cpu").code == 0
    assert fastarat("compare", *runs, "--json").json["attack"]["name"] == "PGD-2"
    for run in runs:
        (run / "outcomes" / "damaged.json").write_text("{")
    result = fastarat("compare", *runs, "--json")
    assert result.json["attack"]["name"] == "PGD-2" and "left out" in result.err


def test_a_run_that_has_not_finished_is_shown_and_told_as_such(fastarat, runs):
    changed(runs[1], epochs=400)
    result = fastarat("compare", *runs, "--num-images", "20", "--device", "cpu")
    assert "│ 2 of 400 │" in result.out and "b has not finished (epochs: 2 of 400)" in result.err
    assert "a has not finished" not in result.err
    assert [of["is_finished"] for of in fastarat("compare", *runs, "--json").json["runs"].values()] == [True, False]


def test_an_evaluation_under_another_radius_is_taken_only_if_no_other_is_shared_and_is_told(fastarat, runs):
    few = ("--num-images", "20", "--device", "cpu")
    smaller = ("--steps", "50", "--eps-255", "1")  # by more steps: a stronger attack, were it of the same radius
    for run in runs:
        assert fastarat("eval", run, *few, *smaller).code == 0
    result = fastarat("compare", *runs)
    assert "20 test images of digits under PGD-50 (L∞, radius 1/255)" in result.out
    assert "no evaluation of their own threat model" in result.err
    for run in runs:
        assert fastarat("eval", run, *few, "--steps", "2").code == 0
    result = fastarat("compare", *runs)
    assert "20 test images of digits under PGD-2 (L∞, radius 45.9/255)" in result.out
    assert "no evaluation of their own" not in result.err
    assert fastarat("report", *runs, "--num-images", "0", "--out", "both.html").code == 0
    assert "20 test images of digits under PGD-2 (L∞, radius 45.9/255)" in Path("both.html").read_text()


def test_adversarial_training_is_found_to_be_ahead_of_standard_training(fastarat):
    flags = (*TINY, "--epochs", "3", "--num-train-images", "800")
    for recipe in ("at", "standard"):
        steps = ("--attack.steps", "5") if recipe == "at" else ("--attack.steps", "0")
        assert fastarat("train", f"digits-{recipe}", *flags, *steps, "--out", recipe).code == 0
    result = fastarat("compare", "at", "standard", "--device", "cpu")
    assert result.code == 0 and "robust: at is ahead of standard by " in result.out


def test_runs_on_other_data_are_told_so_and_not_sent_to_evaluate_each(fastarat, runs):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(0, 255, (80, 8, 8, 1), np.uint8), "label": np.arange(80) % 10}
    np.savez("noise.npz", **arrays)
    few = ("--num-train-images", "64", "--num-validation-images", "8", "--attack.eps-255", "8")
    assert fastarat("train", "digits-arat", *TINY, *few, "--data", "noise.npz", "--out", "other").code == 0
    said = "a is on digits, other is on noise: they cannot be compared image by image"
    assert said in fastarat("compare", runs[0], "other").error
    assert "different threat models" in fastarat("compare", runs[0], "other", "--data", "digits").error


def test_what_cannot_be_compared_says_why(fastarat, runs):
    assert "give two runs or more" in fastarat("compare", runs[0]).error
    assert "a run is given twice" in fastarat("compare", runs[0], runs[0]).error
    assert "is no run directory" in fastarat("compare", runs[0], "nowhere").error
    (runs[1] / "model.safetensors").unlink()
    assert "has no model.safetensors" in fastarat("compare", *runs).error
    flags = ("--attack.steps", "1", "--attack.eps-255", "8", "--evaluation.eps-255", "8")
    assert fastarat("train", "digits-arat", *TINY, *flags, "--out", "smaller").code == 0
    assert (
        "different threat models (a linf 45.9/255, smaller linf 8/255)" in fastarat("compare", runs[0], "smaller").error
    )
