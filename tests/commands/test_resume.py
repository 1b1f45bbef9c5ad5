"""A run that was stopped goes on as if it had not been; what cannot go on says why."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.robustness import row as robustness_row
from bench.robustness.suites import SuiteTraining
from fastarat.__main__ import main
from fastarat.commands.train import parse_arguments
from fastarat.common.errors import UserError
from fastarat.config import to_json
from fastarat.config.recipes import recipe
from fastarat.runs.run import Run
from fastarat.training import evaluations
from fastarat.training.going_on import _check_unfinished
from tests.helpers.command_line import (
    ONE_EPOCH,
    assert_same_run,
    metrics,
    newest,
    results_of,
    state_of,
    stop_after,
)

LONG = (*ONE_EPOCH, "--epochs", "6", "--evaluation.every-epochs", "2", "--device", "cpu")
LONG += ("--averaging.kind", "ema", "--averaging.start-epoch", "1", "--num-validation-images", "100")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The long run, which nothing stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", *LONG, "--out", str(run)]) == 0
    return run


@pytest.mark.no_cover  # what it runs is counted by others
@pytest.mark.parametrize(
    ("number", "step", "then", "how"),
    [
        (signal.SIGINT, 5, "_between_steps", ("--resume",)),  # in an epoch of four
        (signal.SIGTERM, 16, "_between_steps", ("--resume", "--out")),  # at the end of one
        (signal.SIGTERM, 8, "_evaluated", ("--resume",)),
    ],
    ids=["in an epoch", "at its end", "in its evaluation"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(fastarat, tmp_path, monkeypatch, whole, number, step, then, how):
    with monkeypatch.context() as patch:
        stop_after(patch, step, number, then)
        result = fastarat("train", *LONG, "--out", "stopped")
    assert result.code == 128 + number and "Traceback" not in result.err
    said = [line for line in result.err.splitlines() if line.startswith(f"stopped at step {step} ")]
    assert len(said) == 1 and "fastarat train --resume stopped" in said[0]
    assert state_of(newest(tmp_path / "stopped"))["step"] == step

    resumed = fastarat("train", *how, "stopped")
    assert resumed.code == 0 and "going on at step" in resumed.err
    lines = metrics(tmp_path / "stopped")
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    # A run that goes on from an epoch's last step has no step of it to time.
    assert [line["epoch"] for line in lines if "images_per_s" not in line] == ([step // 4] if step % 4 == 0 else [])
    assert all(line.get("images_per_s", 1) > 0 for line in lines)
    assert_same_run(tmp_path / "stopped", whole)


def test_a_run_that_is_stopped_while_it_estimates_its_average_anew_goes_on_to_the_same_bits(
    fastarat, tmp_path, monkeypatch
):
    averaged = (*ONE_EPOCH, "--averaging.kind", "swa", "--averaging.start-epoch", "1", "--averaging.every-steps", "2")
    reestimate = evaluations.reestimate

    def stopped(model, batches, *args, **how):
        next(batches)
        os.kill(os.getpid(), signal.SIGTERM)
        reestimate(model, batches, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "reestimate", stopped)
        result = fastarat("train", *averaged, "--out", "stopped")
    assert result.code == 143 and "stopped at step 4 (evaluating); 'fastarat train --resume stopped'" in result.err
    assert not (tmp_path / "stopped/model.safetensors").exists()
    assert fastarat("train", "--resume", "stopped").code == 0
    assert fastarat("train", *averaged, "--out", "whole").code == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.no_cover  # what it runs is counted by others
@pytest.mark.parametrize(("optimizer", "has_bf16"), [("sgd", True), ("muon", True), ("sgd", False)])
def test_a_run_goes_on_in_the_format_that_it_began_with_to_the_same_bits(
    fastarat, tmp_path, monkeypatch, optimizer, has_bf16
):
    settings = (*ONE_EPOCH, "--epochs", "2", "--device", "cpu", "--dtype", "auto", "--compile", "auto")
    settings += ("--optimizer.name", optimizer)
    monkeypatch.setattr("fastarat.training.choices.cpu_computes_bf16", lambda: has_bf16)
    assert fastarat("train", *settings, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert fastarat("train", *settings, "--out", "stopped").code == 130
    # As on another machine.
    monkeypatch.setattr("fastarat.training.choices.cpu_computes_bf16", lambda: not has_bf16)
    resumed = fastarat("train", "--resume", "stopped")
    dtype = "bf16" if has_bf16 else "fp32"
    assert f"dtype: {dtype} (as the run has it so far)" in resumed.err
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    sessions = json.loads((tmp_path / "stopped/record.json").read_text())["sessions"]
    chosen = [tuple(session[name] for name in ("device", "dtype", "compile")) for session in sessions]
    assert chosen == [("cpu", dtype, "eager")] * 2


def test_resuming_a_finished_run_changes_nothing(fastarat, trained, run):
    result = fastarat("train", "--resume", run)
    assert result.code == 0 and f"{run} has finished its 2 epochs: --epochs N" in result.err
    assert_same_run(trained, run)
    assert len(json.loads((run / "record.json").read_text())["sessions"]) == 2


def test_a_finished_run_can_get_more_epochs(fastarat, trained, run):
    assert fastarat("train", "--resume", run, "--epochs", "3").code == 0
    assert [line["epoch"] for line in metrics(run)] == [1, 2, 3]
    assert results_of(run)[:2] == results_of(trained)
    # The configuration says what the run is now: to go on with it again, or to repeat it.
    assert json.loads((run / "config.json").read_text())["epochs"] == 3


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--batch", "32"), "batch"),
        (("--seed", "1"), "seed"),
        (("--attack.steps", "3"), "attack"),
        (("--method.gamma", "1"), "method"),
        (("--model.name", "tiny"), "model"),
        (("--num-train-images", "128"), "num_train_images"),
        (("--optimizer.name", "muon"), "optimizer.name"),
        (("--loading.order", "quasi-random"), "loading"),
    ],
)
def test_a_setting_that_makes_it_another_run_is_refused(fastarat, trained, flags, named):
    before = newest(trained).read_bytes()
    result = fastarat("train", "--resume", trained, *flags)
    assert result.code == 2 and f"another {named}" in result.error and "--from" in result.error
    assert newest(trained).read_bytes() == before


def test_resume_without_a_name_takes_the_newest_run_of_the_recipe(fastarat, run, tmp_path):
    for name in ("digits-arat-20250101-000000", "digits-arat-20260101-000000", "digits-at-20270101-000000"):
        shutil.copytree(run, tmp_path / "runs" / name)
    result = fastarat("train", "digits-arat", "--resume")
    assert result.code == 0 and "runs/digits-arat-20260101-000000" in result.err


@pytest.mark.parametrize("args", [("--resume",), ("--resume", "nowhere"), ("--resume", "--out", "nowhere")])
def test_where_there_is_nothing_to_resume_that_is_said(fastarat, tmp_path, args):
    result = fastarat("train", *args)
    assert result.code == 2 and result.error.startswith("nothing to resume")
    assert list(tmp_path.iterdir()) == []


def test_a_newest_checkpoint_that_was_cut_off_is_named_and_the_one_before_still_goes_on(fastarat, trained, run):
    broken = newest(run)
    broken.write_bytes(broken.read_bytes()[:1000])
    result = fastarat("train", "--resume", run)
    assert result.code == 2 and str(broken) in result.error and "truncated" in result.error
    assert "remove" in result.error or "delete" in result.error
    broken.unlink()
    assert fastarat("train", "--resume", run).code == 0
    assert_same_run(trained, run)


@pytest.mark.parametrize("left", ["metrics.jsonl", "model.safetensors"])
@pytest.mark.parametrize("has_folder", [True, False])
def test_a_run_that_has_results_and_no_checkpoint_is_not_begun_again_over_them(fastarat, run, left, has_folder):
    shutil.rmtree(run / "checkpoints")
    if has_folder:
        (run / "checkpoints").mkdir()
    (run / ({"metrics.jsonl", "model.safetensors"} - {left}).pop()).unlink()
    before = (run / left).read_bytes()
    error = fastarat("train", "--resume", run).error
    assert "has its results but no checkpoint any more" in error and "fastarat train --from" in error
    assert (run / left).read_bytes() == before


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_when_it_is_resumed(fastarat, trained, run):
    shutil.rmtree(run / "checkpoints")
    for path in (run / "metrics.jsonl", run / "model.safetensors"):
        path.unlink()
    assert fastarat("train", "--resume", run).code == 0
    assert_same_run(trained, run)


def test_a_line_of_metrics_that_a_crash_cut_off_is_written_anew(fastarat, trained, run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    assert fastarat("train", "--resume", run).code == 0
    assert metrics(run) == metrics(trained)


def test_what_a_killed_process_had_begun_to_write_is_removed_and_nothing_else(fastarat, run):
    begun = run / "checkpoints" / ".step-000000034.pt.fastarat-999999999-0123abcd.tmp"
    others = [run / "checkpoints/.notes.tmp", run / ".draft.19068.tmp", run / "deep" / begun.name]
    others[-1].parent.mkdir()
    for path in (begun, *others):
        path.write_bytes(b"half")
    assert fastarat("train", "--resume", run, "--epochs", "3").code == 0
    assert not begun.exists() and all(path.read_bytes() == b"half" for path in others)


def test_a_run_whose_images_are_named_from_its_folder_goes_on_there(tmp_path, monkeypatch):
    """As runs of earlier versions name them."""
    config = replace(recipe("digits-arat"), data="images", extra=replace(recipe("digits-arat").extra, data="more"))
    for name in ("images", "more", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "run/config.json").write_text(to_json(config))
    (tmp_path / "run/model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    found = parse_arguments(["--resume", "run"]).config
    assert found == config
    training: Any = SimpleNamespace(config=found, epoch=config.epochs + 1)
    _check_unfinished(Run(Path("run")), training)
    # They may have moved, and be read otherwise: what a missing worker or other images ask for.
    moved = parse_arguments(["--resume", "run", "--extra.data", "images", "--loading.workers", "1"]).config
    assert (moved.extra.data, moved.loading.workers) == ("images", 1)
    with pytest.raises(UserError, match="another extra"):
        parse_arguments(["--resume", "run", "--extra.ratio", "0.25"])

    monkeypatch.setattr(robustness_row, "train", lambda *_, resume: (_ for _ in ()).throw(InterruptedError(resume)))
    with pytest.raises(InterruptedError, match="True"):
        robustness_row.measure("digits", SuiteTraining("at", config, Path("run")), None, num_autoattack=None)
