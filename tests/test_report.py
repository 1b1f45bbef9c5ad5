"""Learning curves say what their accuracies are of."""

import pytest

from fastarat.report import _evaluation_of

HELD = {"images": "test", "num_images": 1000, "steps": 10, "clean": 80.0, "robust": 40.0}


@pytest.mark.parametrize(
    ("evaluation", "title"),
    [
        (HELD, "1,000 test images, robust against PGD-10"),  # of a run before clean images had a number of their own
        (HELD | {"num_clean_images": 1000}, "1,000 test images, robust against PGD-10"),
        (HELD | {"num_clean_images": 10_000}, "10,000 test images, 1,000 of them against PGD-10"),
    ],
)
def test_the_title_names_how_many_images_were_measured_and_attacked(evaluation, title):
    lines = [{"epoch": 1, "train": {"loss": 1.0}}, {"epoch": 2, "train": {"loss": 0.5}, "evaluation": evaluation}]
    assert _evaluation_of({"run": lines}) == title


def test_runs_without_an_evaluation_have_no_title():
    assert _evaluation_of({"run": [{"epoch": 1, "train": {"loss": 1.0}}]}) == ""
