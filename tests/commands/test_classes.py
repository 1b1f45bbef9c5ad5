"""The same images under another order of their classes give the same figures; under other names they are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastarat.analysis.snapshots import reconstruct
from fastarat.data.formats.prepared import write
from fastarat.data.images.dataset import Dataset, Images, from_splits
from fastarat.data.open import open_dataset
from fastarat.runs.run import Run
from fastarat.runs.weights import load_model
from tests.helpers.command_line import ONE_EPOCH, TINY, assert_same_run, results_of

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BACKWARDS = NAMES[::-1]
FEW = ("--attack", "pgd", "--steps", "2", "--num-images", "60", "--json")


def renumbered(digits: Dataset, names: tuple[str, ...]) -> Dataset:
    """The digits, whose classes have these names, in this order."""
    places = np.array([names.index(name) for name in NAMES]) if set(names) == set(NAMES) else np.arange(10)
    parts = (Images(part.images, places[part.labels]) for part in (digits.decoded_train, digits.test))
    return from_splits("digits", *parts, names, 16)


def recorded(run: Path, what: str) -> str:
    """Why the run's last session chose something."""
    choices = json.loads((run / "record.json").read_text())["sessions"][-1]["choices"]
    return next(choice["why"] for choice in choices if choice["what"] == what)


@pytest.fixture
def sets(tmp_path):
    """Two prepared sets of the digits: their names in order, and backwards; and one whose nine is called neun."""
    for folder, names in (("named", NAMES), ("backwards", BACKWARDS), ("german", (*NAMES[:9], "neun"))):
        write(renumbered(open_dataset("digits"), names), tmp_path / folder, "test")


@pytest.fixture
def run(fastarat, sets) -> Path:
    """A run of one epoch on the named digits."""
    assert fastarat("train", "digits-at", *TINY, "--epochs", "1", "--data", "named", "--out", "run").code == 0
    return Path("run")


def test_a_set_in_another_order_is_evaluated_to_the_same_and_it_is_said(fastarat, run):
    own, other = (fastarat("eval", run, *FEW, "--data", data) for data in ("named", "backwards"))
    assert "classes of digits: by name, since digits has them in another order than run" in other.err
    assert other.json["classes_matched"].startswith("by name") and not own.json["classes_matched"]
    assert other.json["clean"] == own.json["clean"] and other.json["robust"] == own.json["robust"]
    classes, percent = zip(*own.json["clean"]["per_class"].items(), strict=True)
    assert classes == NAMES and percent != percent[::-1], "the order matters here"


def test_other_names_are_refused_and_missing_ones_are_said(fastarat, run, trained):
    refused = fastarat("eval", run, "--data", "german")
    assert refused.code == 2
    assert "'neun' is in digits alone and 'nine' is in run alone; give the --data it was trained on" in refused.error
    numbered = fastarat("eval", run, *FEW, "--data", "digits")
    assert numbered.json["clean"] == fastarat("eval", run, *FEW).json["clean"]
    assert "by number, since digits has no names for them" in numbered.err
    named = fastarat("eval", trained, *FEW, "--attack", "none", "--data", "named")
    assert "has no names for them" in named.err and list(named.json["clean"]["per_class"]) == list(NAMES)
    Path("nets.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))"
    )
    own = fastarat("eval", "nets:net", *FEW, "--data", "named")
    assert own.code == 0 and "by number, since nets:net has no names for them" in own.err


def test_a_run_goes_on_with_its_images_in_another_order_to_the_same_bits_and_not_with_other_classes(fastarat, run):
    shutil.copytree(run, "other")
    assert fastarat("train", "--resume", run, "--epochs", "2").code == 0
    result = fastarat("train", "--resume", "other", "--epochs", "2", "--data", "backwards")
    assert result.code == 0 and "classes of digits: matched (by name" in result.err
    assert results_of(Path("other"))[1]["step"] == 8
    assert_same_run(run, Path("other"))
    assert recorded(Path("other"), "classes of digits").startswith("by name")
    refused = fastarat("train", "--resume", "other", "--epochs", "3", "--data", "german")
    assert refused.code == 2 and "'neun' is in digits alone" in refused.error and "give its own --data" in refused.error


def test_an_analysis_sees_the_images_in_the_runs_own_order(fastarat, run):
    last, config = Run(run).checkpoint(), Run(run).config()
    own, other = (reconstruct(config, data, torch.device("cpu"), last).dataset for data in ("named", "backwards"))
    assert own.fingerprint == other.fingerprint and other.classes == NAMES and "by name" in other.matched
    refused = fastarat("analyze", run, "--device", "cpu", "--data", "german")
    assert refused.code == 2 and "'neun' is in digits alone" in refused.error


@pytest.mark.no_cover  # what it runs is counted by others
def test_extra_images_land_on_the_classes_of_their_names(fastarat, sets):
    extra = ("--extra.ratio", "0.25", "--out")
    for data in ("named", "backwards"):
        assert (
            fastarat("train", "digits-at", *TINY, "--data", "named", "--extra.data", data, *extra, data[:4]).code == 0
        )
    assert results_of(Path("name")) == results_of(Path("back"))
    assert recorded(Path("back"), "classes of digits").startswith("by name")
    refused = fastarat("train", "digits-at", *TINY, "--data", "named", "--extra.data", "german", *extra, "run")
    assert refused.code == 2 and "'neun' is in digits alone" in refused.error


def test_a_teacher_of_the_same_classes_in_another_order_is_refused(fastarat, run):
    assert load_model(run / "model.safetensors")[1].classes == NAMES
    flags = (*ONE_EPOCH, "--method.teacher", run, "--out", "student")
    refused = fastarat("train", "digits-arrest", *flags, "--data", "backwards")
    assert refused.code == 2 and "has this run's classes in another order" in refused.error
    assert fastarat("train", "digits-arrest", *flags, "--data", "named").code == 0
