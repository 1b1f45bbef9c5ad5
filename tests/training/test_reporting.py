"""Learning curves say what their accuracies are of; a log hears how far a long epoch is."""

from types import SimpleNamespace

import pytest

from fastarat.common import durations
from fastarat.training import reporting
from fastarat.training.reporting import Display, _Description, _evaluation_of, learning_curves

HELD = {"images": "test", "num_images": 1000, "steps": 10, "clean": 80.0, "robust": 40.0}


@pytest.mark.parametrize(
    ("evaluation", "title"),
    [
        (HELD, "1,000 test images, robust against PGD-10"),  # of a run before clean images had a number of their own
        (HELD | {"num_clean_images": 1000}, "1,000 test images, robust against PGD-10"),
        (
            HELD | {"attack": "linf 8/255 by 0.5/255 from uniform"},
            "1,000 test images, robust against PGD-10, step 0.5/255",
        ),
        (HELD | {"num_clean_images": 10_000}, "10,000 test images, 1,000 of them against PGD-10"),
    ],
)
def test_the_title_names_how_many_images_were_measured_and_attacked(evaluation, title):
    lines = [{"epoch": 1, "train": {"loss": 1.0}}, {"epoch": 2, "train": {"loss": 0.5}, "evaluation": evaluation}]
    assert _evaluation_of({"run": lines}) == title


def test_a_title_says_that_evaluations_differ():
    runs = {
        name: [{"epoch": 1, "train": {"loss": 1.0}, "evaluation": HELD | {"steps": steps}}]
        for name, steps in (("a", 10), ("b", 20))
    }
    assert _evaluation_of(runs) == "1,000 test images, robust against PGD-10 and others"


def test_an_epochs_line_names_the_attack(capsys):
    with Display(num_steps=2, first_step=0, epochs=2, visible=True) as display:
        display.epoch({"epoch": 1, "train": {"loss": 1.0}, "evaluation": HELD}, 1)
    assert "test: clean 80.0 %, PGD-10 40.0 % · " in capsys.readouterr().err


def test_runs_without_an_evaluation_have_no_title():
    assert _evaluation_of({"run": [{"epoch": 1, "train": {"loss": 1.0}}]}) == ""


@pytest.mark.parametrize("num_runs", [1, 4, 5, 10])
def test_every_run_has_its_curves_in_a_colour_of_its_own(num_runs, tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    line = {"epoch": 1, "train": {"loss": 1.0}, "evaluation": HELD}
    learning_curves(tmp_path / "curves.png", {f"run {i}": [line] for i in range(num_runs)}, "runs")
    monkeypatch.undo()
    (figure,) = drawn
    losses, accuracies = (axes.get_lines() for axes in figure.axes)
    plt.close(figure)
    assert [curve.get_label() for curve in losses] == [f"run {i}" for i in range(num_runs)]
    assert len({curve.get_color() for curve in losses}) == num_runs and len(accuracies) == 2 * num_runs


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, "compiling"),
        ({"waits": True, "expected": None}, "compiling · 20 s"),
        ({"waits": True, "expected": 65.0}, "compiling · 20 s · 45 s left"),
        ({"waits": True, "expected": 10.0}, "compiling · 20 s"),
    ],
)
def test_what_is_waited_for_shows_how_long_and_how_much_longer_where_that_is_known(fields, shown):
    task = SimpleNamespace(description="compiling", elapsed=20.0, fields=fields)
    assert _Description("{task.description}", markup=False).render(task).plain == shown  # type: ignore[arg-type]


@pytest.mark.parametrize("visible", [True, False])
def test_a_log_hears_how_far_an_epoch_of_minutes_is_by_the_first_process(monkeypatch, capsys, visible):
    clock = SimpleNamespace(seconds=0.0, monotonic=lambda: clock.seconds)
    for module in (reporting, durations):
        monkeypatch.setattr(module, "time", clock)
    with Display(num_steps=100, first_step=0, epochs=2, visible=visible) as display:
        for step in (10, 20, 30):
            clock.seconds += 40
            display.line(step, 1, {"loss": 1.0}, 8.0)
        display.epoch({"epoch": 1, "train": {"loss": 1.0}, "images_per_s": 8.0}, 50)
        clock.seconds += 30
        display.line(60, 2, {"loss": 1.0}, 8.0)
        clock.seconds += 50
        display.note("compiled")
        clock.seconds += 50
        display.count_from(60)
        display.line(60, 2, {"loss": 1.0}, 8.0)
        clock.seconds += 20
        display.line(60, 2, {"loss": 1.0}, 0.0)
    said = ["epoch 1/2 · step 20 of 100 · 8 images/s · 5 min 20 s left"]
    said.append("epoch 1/2 · loss 1.000 · 8 images/s · 2 min 00 s left")
    said.append("compiled")
    assert capsys.readouterr().err.splitlines() == (said if visible else [])
