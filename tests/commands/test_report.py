"""`fastarat report RUN…` writes one page that stands alone, and every training ends with one."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastarat.commands.train import parse_arguments
from fastarat.config import load_config, recipes
from fastarat.config.evaluation import EvaluationSettings
from fastarat.config.training import ScheduleConfig
from fastarat.data.formats.prepared import write
from fastarat.data.images.dataset import from_splits
from fastarat.data.images.stored import STORED
from fastarat.data.open import open_dataset
from fastarat.evaluation import of_run
from fastarat.evaluation.outcomes import described, keep, kept, weights_digest
from fastarat.reports.facts import facts_of
from fastarat.reports.look import MOST_BYTES, NUM_SHOWN, PICTURES_OF_ONE, as_uri, side_among
from fastarat.reports.repeat import as_command
from fastarat.reports.report import _analysis, _part, page_of
from fastarat.reports.verdict import warnings_of
from tests.helpers.command_line import ONE_EPOCH
from tests.helpers.kept import outcomes_of
from tests.helpers.pages import Page, assert_can_be_read_by_all, assert_stands_alone
from tests.helpers.small_sets import jpeg
from tests.helpers.spoiled import Spoiled, nan

WITH_REPORT = tuple(flag for flag in ONE_EPOCH if flag != "--no-report")
HOSTILE = ("<script>alert(1)<", "\"><img src=x onerror='alert(2)'>", "evil\u202etxt", "&lt;b&gt; {{ 7*7 }} ${x} $x$")


class Blind(nn.Module):
    """A net for images in [0, 1] of which no gradient is a number."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = Spoiled(Behind(net), nan)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x + 1)  # above the half from which on gradients are spoiled


class Behind(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x - 1)


@pytest.fixture
def blind(run, monkeypatch) -> None:
    """A test that asks for this has runs without gradients, whatever they deploy, and nothing kept of `run`."""
    load = of_run.load_deployed
    shutil.rmtree(run / "outcomes", ignore_errors=True)
    monkeypatch.setattr(of_run, "load_deployed", lambda path: (Blind(load(path)[0]), load(path)[1]))


def checked(path: Path) -> Page:
    """The page, once it is what every page has to be."""
    page = Page(path)
    assert_stands_alone(page)
    assert_can_be_read_by_all(page)
    return page


def test_the_page_of_a_run_says_what_it_came_to_and_what_it_took(fastarat, run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(line | {"joules": {"processors": 3_600}}) + "\n" for line in lines)
    )
    result = fastarat("report", run, "--num-images", "60", "--device", "cpu")
    assert result.code == 0 and "PGD-20 (L∞, radius 45.9/255)" in result.out and "report.html" in result.err
    page = checked(run / "report.html")
    assert result.out.strip() in page.text
    said = (
        "60 images: with 95 % confidence",
        "fastarat train digits-arat --epochs 2",
        "--from",
        "loss",
        "processors 2.0 Wh",
    )
    assert all(part in page.text for part in (*said, "resident"))
    assert len(page.every("img")) >= 3 and "Not analysed" in page.text and "no points of the paper" in page.text


def test_the_command_of_a_page_gives_the_settings_of_its_run(run):
    config = replace(load_config(run / "config.json"), sync_bn=True, fidelity="published-code", seed=3)
    config = replace(
        config, schedule=ScheduleConfig("steps", (2, 5)), evaluation=replace(config.evaluation, eps_255=None)
    )
    line = as_command(replace(facts_of(run, "run"), config=config))
    assert parse_arguments(shlex.split(line)[2:]).config.resolved() == config.resolved()


@pytest.mark.parametrize(("settings", "is_weak"), [({}, False), ({"targets": 1}, True), ({"dtype": "bf16"}, True)])
def test_what_a_weakened_autoattack_leaves_is_said_to_be_an_upper_bound(run, settings, is_weak):
    attack = described(EvaluationSettings("autoattack", eps=45.9 / 255, **settings))
    flags = {"clean": np.ones(9, bool), "square": np.ones(9, bool)}
    found = outcomes_of(flags, attack, set_fingerprint=facts_of(run, "run").data_fingerprint)
    said = warnings_of(replace(facts_of(run, "run"), outcomes=[found]))
    assert any(f"under {found.name} is an upper bound" in line for line in said) == is_weak


def test_a_weakened_evaluation_of_the_training_is_named_wherever_it_is_shown(fastarat, tmp_path):
    flags = (*ONE_EPOCH, "--evaluation.step-255", "0.5", "--out", tmp_path / "weak")
    result = fastarat("train", "digits-at", *flags)
    assert "%, PGD-1, step 0.5/255 " in result.err.splitlines()[-1]
    assert "under" not in result.err and result.err.count("PGD-1, step 0.5/255") == 2
    result = fastarat("report", tmp_path / "weak", "--num-images", "0")
    assert "PGD-1, step 0.5/255 (L∞, radius 45.9/255)" in result.out
    page = checked(tmp_path / "weak/report.html")
    assert "dashed is accuracy under PGD-1, step 0.5/255 (L∞, radius 45.9/255) on 50 test images" in page.text
    assert "PGD-1, step 0.5/255, %" in page.text
    labels = " ".join(svg["aria-label"] for svg in page.every("svg"))
    assert "weak ends by test: clean" in labels and "% under PGD-1, step 0.5/255, of 50 test images" in labels


def test_runs_of_another_threat_model_are_left_out_of_the_picture_and_named(fastarat, one_epoch, tmp_path):
    flags = (*ONE_EPOCH, "--attack.eps-255", "4", "--out", tmp_path / "smaller")
    assert fastarat("train", "digits-at", *flags).code == 0
    assert fastarat("report", one_epoch, tmp_path / "smaller", "--num-images", "0", "--out", "both.html").code == 0
    page = checked(Path("both.html"))
    assert "so not in the picture: smaller (L∞, radius 4/255, digits)." in page.text
    assert "smaller: of another threat model or data set (L∞, radius 4/255, digits), and so not drawn." in page.text
    labels = [svg["aria-label"] for svg in page.every("svg")]
    (label,) = (of for of in labels if of.startswith("Clean accuracy against"))
    assert "(L∞, radius 45.9/255)" in label and "smaller" not in label
    assert not any("smaller" in of for of in labels if of.startswith("Accuracy over the epochs"))


def test_what_the_training_measured_lower_is_a_doubt(run):
    flags = {"clean": np.ones(9, bool), "pgd": np.ones(9, bool)}
    facts = facts_of(run, "run")
    attack = described(EvaluationSettings("pgd", eps=45.9 / 255))
    found = outcomes_of(flags, attack, set_fingerprint=facts.data_fingerprint)
    said = warnings_of(replace(facts, outcomes=[found]))
    assert any(line.startswith("The training's own evaluation, by PGD-1, left less: ") for line in said)


def test_images_of_another_set_of_the_same_name_are_not_the_runs_own(fastarat, run):
    shutil.rmtree(run / "outcomes", ignore_errors=True)
    data = open_dataset("digits")
    easy = from_splits("digits", data.train, data.train, data.classes, data.max_value)
    write(easy, Path("easy/digits"), "digits")
    for images in (("--data", "easy/digits", "--num-images", "200"), ("--num-images", "100")):
        assert fastarat("eval", run, *images, "--steps", "1", "--device", "cpu").code == 0
    result = fastarat("report", run, "--num-images", "0")
    assert "of 100 test images" in result.out
    assert "200 other images, of digits" in checked(run / "report.html").text


@pytest.mark.parametrize(
    ("recorded", "evaluated", "is_own"),
    [
        ({"name": "set", "fingerprint": "a"}, {"set_fingerprint": "a", "data": "renamed"}, True),
        ({"name": "set", "fingerprint": "a"}, {"set_fingerprint": "b"}, False),
        ({"name": "set", "fingerprint": "a"}, {"set_fingerprint": f"{STORED}a", "data": "set"}, True),
        ({"name": "set", "fingerprint": "a"}, {"set_fingerprint": f"{STORED}a", "data": "other"}, False),
        ({"fingerprint": f"{STORED}a", "labels_fingerprint": "labels"}, {"set_fingerprint": "b"}, True),
        ({"fingerprint": f"{STORED}a", "labels_fingerprint": "others"}, {"set_fingerprint": "b"}, False),
        ({"name": "set", "fingerprint": ""}, {"set_fingerprint": "b"}, True),
        ({"name": "other", "fingerprint": ""}, {"set_fingerprint": "b"}, False),
    ],
    ids=str,
)
def test_a_data_set_is_told_by_its_images_where_they_are_known(run, recorded, evaluated, is_own):
    facts = replace(facts_of(run, "run"), sessions=[{"data": recorded}])
    flags = {"clean": np.ones(9, bool), "pgd": np.ones(9, bool)}
    assert facts.is_of_own_data(outcomes_of(flags, **evaluated)) == is_own


def test_robust_images_that_no_attack_could_search_are_never_told_as_robust_alone(fastarat, run, blind, tmp_path):
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("outcomes"))
    config = json.loads((other / "config.json").read_text())
    config["optimizer"]["weight_decay"] /= 2  # of other settings, so that there is something to test
    (other / "config.json").write_text(json.dumps(config))
    result = fastarat("report", run, other, "--out", "both.html", "--num-images", "40", "--device", "cpu")
    (found,) = kept(run)
    seen, right = int(found.flags["clean"].sum()), int(found.robust.sum())
    assert 0 < right == found.num_unsearched  # the noise of the start breaks the others
    assert result.out.count(f"{right} of them without evidence, since no attack could search them") == 2
    page, said = checked(Path("both.html")).text, f"No attack could search {right} of the {right} robust images."
    assert 0 < page.index("Before you believe it") < page.index(said) < page.index("AR-AT of the net digits")
    assert f"other: {right} of {seen} images were not attackable by pgd" in page
    assert f"({right} images not searched)" in page
    compared = fastarat("compare", run, other)
    assert f"warning: other: {right} of {seen} images were not attackable by pgd" in compared.out
    told = next(line for line in compared.out.splitlines() if line.startswith("robust: "))
    assert f"{right} robust images of run are so without evidence" in told and "of other are so" in told
    row = fastarat("compare", run, other, "--json").json["runs"]["run"]
    assert row["not_searched"] == right and any(said in warning for warning in row["warnings"])


@pytest.mark.parametrize("there", [True, False], ids=["another is deployed", "none was yet"])
def test_what_is_deployed_during_a_look_does_not_get_its_outcomes(run, monkeypatch, capsys, there):
    def evaluated(*given, **settings):
        weights.write_bytes(deployed + b" ")
        return evaluate(*given, **settings)

    weights = run / "model.safetensors"
    deployed, evaluate = weights.read_bytes(), of_run.evaluate
    shutil.rmtree(run / "outcomes", ignore_errors=True)
    if not there:
        weights.unlink()
    monkeypatch.setattr(of_run, "evaluate", evaluated)
    of_run.evaluate_run(run, EvaluationSettings("pgd", steps=1), 10, torch.device("cpu"))
    assert kept(run) == [] and "deploys other weights than were evaluated" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["digits-arat", "cifar10-resnet18-trades"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_command_gives_sizes_that_would_follow_otherwise(run, recipe, norm):
    its = recipes.recipe(recipe).resolved()
    sizes = {"eps_255": 128.0, "step_255": its.attack.step_255}  # as of a run from before steps followed
    config = replace(its, attack=replace(its.attack, norm=norm, **sizes))
    for other in (config, replace(config, evaluation=replace(config.evaluation, eps_255=None, step_255=32.0))):
        line = as_command(replace(facts_of(run, "run"), config=other))
        assert parse_arguments(shlex.split(line)[2:]).config.resolved() == other, line


def test_runs_stand_beside_one_another_with_a_test_of_their_differences(fastarat, run, one_epoch):
    result = fastarat("report", run, one_epoch, "--num-images", "100", "--json", "--device", "cpu")
    assert result.code == 0 and [name.rpartition("/")[2] for name in result.json["verdicts"]] == ["run", "run"]
    page = checked(Path("report.html"))
    assert "100 test images of digits under PGD-20 (L∞, radius 45.9/255)" in page.text
    assert "McNemar's exact test" in page.text and "num-train-images" in page.text and "noise" in page.text


def test_an_analysis_is_shown_and_one_that_does_not_fit_is_a_line(fastarat, run):
    assert fastarat("analyze", run, "--num-images", "20", "--batches", "1", "--device", "cpu").code == 0
    assert fastarat("report", run, "--num-images", "0").code == 0
    page = checked(run / "report.html")
    assert "Cosines between gradients" in page.text and "naive conflict" in page.text
    analysis = json.loads((run / "analysis/analysis.json").read_text())
    (run / "analysis/analysis.json").write_text(json.dumps(analysis | {"states": 3}))
    assert fastarat("report", run, "--num-images", "0").code == 0
    assert "its analysis cannot be shown" in checked(run / "report.html").text
    facts, problems = replace(facts_of(run, "run"), analysis=analysis | {"summary": [1]}), []
    assert _part(lambda: _analysis(facts), "analysis", problems) is None and problems


def test_a_record_and_a_profile_that_do_not_fit_leave_the_rest_of_the_page(run):
    facts = facts_of(run, "run")
    sessions = [{**facts.last_session, "choices": [{"what": "dtype", "value": "fp32"}]}]
    spoiled = replace(facts, sessions=sessions, profile={"parts": [], "roofs": {"flops_per_s": 0}}, lines=[])
    page = page_of([spoiled], ["none"])
    assert "its choices cannot be shown (KeyError" in page and "its cost cannot be shown (ZeroDivisionError" in page


def test_names_of_others_are_text_and_nothing_else(fastarat, tmp_path):
    pictures = tmp_path / "<i>pictures"
    for i in range(48):
        path = pictures / ("val" if i % 3 == 0 else "train") / HOSTILE[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i, 8, 8, kind="PNG"))
    run = tmp_path / "<svg onload=alert(3)>&\"'"
    flags = (*ONE_EPOCH, "--num-train-images", "32", "--data", pictures, "--out", run)
    assert fastarat("train", "digits-at", *flags).code == 0
    assert fastarat("report", run, "--device", "cpu").code == 0
    page = checked(run / "report.html")
    shown = [name.replace("\u202e", "\\u202e") for name in HOSTILE]
    assert all(name in page.text for name in shown) and "\u202e" not in page.source
    assert run.name in page.text and "49" not in [text.strip() for text in page.texts]


def test_a_training_ends_with_its_report_unless_it_is_not_wanted(fastarat, with_reports):
    assert fastarat("train", "digits-at", *WITH_REPORT, "--out", "one").code == 0
    assert "of the net digits on digits" in checked(Path("one/report.html")).text
    assert fastarat("train", "digits-at", *ONE_EPOCH, "--out", "two").code == 0
    assert not Path("two/report.html").exists()
    assert fastarat("train", "--resume", "one", "--epochs", "2").code == 0
    assert "It trained for 2 epochs" in checked(Path("one/report.html")).text


@pytest.mark.parametrize("error", [ZeroDivisionError("of all things"), KeyboardInterrupt()], ids=["bug", "Ctrl-C"])
def test_a_report_that_fails_is_one_line_and_the_training_is_done(fastarat, with_reports, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("fastarat.reports.report.write_report", fail)
    result = fastarat("train", "digits-at", *WITH_REPORT, "--json", "--out", "run")
    assert result.code == 0 and result.json["run"] == "run"
    (line,) = (line for line in result.err.splitlines() if "report" in line)
    assert line.startswith("no report was written (") and line.endswith("'fastarat report run' writes one")


def test_what_is_no_run_is_refused(fastarat, run):
    assert fastarat("report", "nowhere").error == "nowhere is no run directory: it has no config.json"
    assert "give one run or more" in fastarat("report").error
    assert "a run is given twice" in fastarat("report", run, run, "--out", "both.html").error
    same = run.parent / "elsewhere" / ".." / run.name
    (run.parent / "elsewhere").mkdir()
    assert "a run is given twice" in fastarat("report", run, same, "--out", "both.html").error


def test_what_would_fail_at_its_end_is_refused_before_the_work(fastarat, run, monkeypatch):
    def evaluated(*given, **settings):
        raise AssertionError

    monkeypatch.setattr("fastarat.reports.look.evaluate_run", evaluated)
    result = fastarat("report", run, "--out", "/proc/x.html")  # where not even root can write
    assert result.code == 2 and result.error.startswith("cannot write /proc/x.html: ")
    result = fastarat("report", run, "--data", "nosuch")
    assert result.code == 2 and "nosuch" in result.error and not (run / "report.html").exists()


def test_images_that_do_not_fit_a_net_are_refused_where_they_are_asked_for(fastarat, run):
    np.savez("noise.npz", image=np.zeros((80, 9, 9, 3), np.uint8), label=np.arange(80) % 4)
    result = fastarat("report", run, "--data", "noise.npz", "--device", "cpu")
    assert result.code == 2 and "noise" in result.error and not (run / "report.html").exists()


def test_damaged_metrics_leave_the_rest_of_the_page(fastarat, run):
    assert fastarat("eval", run, "--num-images", "20", "--steps", "1", "--device", "cpu").code == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write("no line\n")
    result = fastarat("report", run, "--num-images", "0")
    assert result.code == 0 and result.err.count("without it there are no curves") == 1 and "epochs" not in result.out
    text = checked(run / "report.html").text
    assert "its curves cannot be shown" in text and "The training has not finished" not in text


def test_what_is_not_there_any_more_leaves_the_rest_of_the_page(fastarat, run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data": "gone"}))
    result = fastarat("report", run)
    assert (
        result.code == 0
        and "shows no images" in result.err
        and "No images are shown" in checked(run / "report.html").text
    )
    (run / "model.safetensors").unlink()
    result = fastarat("report", run)
    assert result.code == 0 and "The training has not finished" in checked(run / "report.html").text


def test_a_page_of_five_thousand_epochs_and_a_thousand_classes_is_small(fastarat, run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rng = np.random.default_rng(0)
    last = next(line["evaluation"] for line in lines if "evaluation" in line)
    epochs = [
        {
            **lines[0],
            "epoch": i,
            "train": {"loss": 9 / i + rng.random()},
            "evaluation": last | {"robust": 50 * rng.random()},
        }
        for i in range(1, 5001)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"epochs": 5000}))
    settings = EvaluationSettings("autoattack", eps=45.9 / 255)
    classes = tuple(f"class number {i}" for i in range(1000))
    flags = {"clean": rng.random(10_000) < 0.8, "square": rng.random(10_000) < 0.3}
    eps_255 = json.loads((run / "config.json").read_text())["attack"]["eps_255"]
    attack = described(settings) | {"eps_255": eps_255}
    own = {"set_fingerprint": facts_of(run, "run").data_fingerprint, "weights": weights_digest(run)}
    keep(run, outcomes_of(flags, attack, num_classes=1000, classes=classes, **own))
    assert fastarat("report", run, "--num-images", "0").code == 0
    page = checked(run / "report.html")
    assert "5000 epochs" in page.text and "class number 999" in page.text and "40 of 5000 epochs" in page.text
    assert page.text.count("The 10 least robust of 1000 classes") == 1
    assert (run / "report.html").stat().st_size < 2_000_000


def test_what_there_is_to_doubt_comes_first(fastarat, run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "train" in line]
    held = {"images": "test", "num_images": 1000, "num_clean_images": 1000, "steps": 10, "clean": 80.0}
    lines[0]["evaluation"], lines[1]["evaluation"] = (
        held | {"robust": 45.0},
        held | {"robust": 30.0, "not_attackable": 7},
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = json.loads((run / "record.json").read_text())
    record["sessions"][-1] |= {"commit": "0123456789ab+", "events": ["it fell back"]}
    (run / "record.json").write_text(json.dumps(record))
    assert fastarat("report", run, "--num-images", "0").code == 0
    text = checked(run / "report.html").text
    doubts = (
        *(
            "15.7 points higher after epoch 1",
            "is an upper bound",
            "not attackable: 7",
            "During the training: it fell back",
        ),
        "The code had changes that are in no commit",
    )
    places = [text.index(doubt) for doubt in doubts]
    assert places == sorted(places) and places[-1] < text.index("AR-AT of the net digits")


@pytest.mark.parametrize("num_runs", [1, 4, 40])
def test_images_of_any_number_of_runs_take_no_more_than_a_page_may(num_runs):
    noise = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))

    uri = as_uri(noise, side_among(num_runs))

    assert num_runs * 2 * NUM_SHOWN * PICTURES_OF_ONE * len(uri) <= 1.05 * MOST_BYTES  # a PNG's head, 128 bytes or so
