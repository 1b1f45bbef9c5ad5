"""`fastarat tune`: a table and what trainings take; the second call reads it, and a training takes it up."""

import json
import signal
from dataclasses import replace

import pytest
from fastarat_kernels.implementations import TRITON
from fastarat_kernels.launch import UnsupportedInput
from safetensors.torch import load_file
from torch import nn

from fastarat.commands.train import parse_arguments
from fastarat.common.choice_log import ChoiceLog
from fastarat.common.signals import Stopped
from fastarat.training.build import IMPLEMENTATIONS, step_of
from fastarat.training.choices import Choices
from fastarat.training.tuning import kept
from fastarat.training.tuning import tune as module
from fastarat.training.tuning.trial import Tried
from tests.helpers.command_line import ONE_EPOCH

OPEN = (*ONE_EPOCH, "--dtype", "auto", "--compile", "auto")
SHAPE = ("digits-arat", "--attack.steps", "1", "--batch", "16")
HALF = Choices(dtype="bf16")


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """The settings that were tried: for show, with bf16 for the fastest and a compiler that fails."""
    done = []

    def try_all(setting, advance, *_):
        done.append(setting)
        advance(1)
        return [
            Tried(Choices(), None, 0.1, 100.0),
            Tried(HALF, None, 0.1, 200.0, (1.9, 2.0, 2.1)),
            Tried(Choices(compile="compile", unroll=True), "fails: RuntimeError: no compiler"),
        ], {}

    monkeypatch.setattr(module, "try_all", try_all)
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "cache")
    # Whatever this CPU computes: bf16 is a form of it.
    monkeypatch.setattr(kept, "open_forms", lambda config, device: [f for f in (Choices(), HALF) if _fits(f, config)])
    return done


@pytest.fixture
def mixed(trials, monkeypatch):
    """What of Triton's kernels has earned its place is the fastest; on a CPU they run their twins."""
    whole = Choices(kernels="triton")
    tried = [Tried(Choices(), None, 0.1, 100.0), Tried(whole, "fails: UnsupportedInput: x is not dense")]
    without = "pgd_step", "augment", "fused_batch_norm@64x4x4"
    padded = replace(whole, stem_channels=8)
    tried += [Tried(replace(padded, without=without), None, 0.1, 200.0, (1.9, 2.0, 2.1))]
    verdicts = {
        "pgd_step": "left out; alone: fails: UnsupportedInput: x is not dense",
        "augment": "left out; alone: 0.90",
        "fused_batch_norm@64x4x4": "left out; without it: 1.10 x the speed",
    }
    monkeypatch.setattr(module, "try_all", lambda *_: (tried, verdicts))
    monkeypatch.setattr(kept, "open_forms", lambda config, device: [Choices(), whole, padded])
    monkeypatch.setattr("fastarat.training.choices._why_no_triton", lambda *_: "")


def _fits(form, config):
    return config.dtype in ("auto", form.dtype)


def test_the_table_says_what_is_fastest_and_the_second_call_reads_it(fastarat, trials):
    first = fastarat("tune", *SHAPE)
    assert first.code == 0 and "2.00 (1.90-2.10)" in first.out and "refused: fails: RuntimeError: no comp" in first.out
    train = f"'fastarat train {' '.join(SHAPE)}'"
    assert f"{train} takes bf16, pytorch, eager" in first.err
    (setting,) = trials
    assert setting.config.batch == 16 and setting.dataset.image_shape == (8, 8, 1)
    second = fastarat("tune", *SHAPE)
    assert second.out == first.out and "was tuned before" in second.err and len(trials) == 1
    assert f"{train} takes" in fastarat("tune", "--recipe", *SHAPE, "--again").err and len(trials) == 2
    found = json.loads(fastarat("tune", *SHAPE, "--json", "--again").out)
    assert found["chosen"]["dtype"] == "bf16" and len(found["tried"]) == 3 and len(trials) == 3


def test_an_interrupted_search_goes_on_and_no_training_takes_of_it_before_its_end(fastarat, trials, monkeypatch):
    try_all, told = module.try_all, []

    def interrupted(setting, advance, before, keep):
        told.append(before)
        tried, _ = try_all(setting, advance)
        keep(tried[:2])
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(module, "try_all", interrupted)
    first = fastarat("tune", *SHAPE)
    assert first.code == 128 + signal.SIGTERM and "2 forms are kept: the same command goes on" in first.err
    config = parse_arguments([*SHAPE]).config
    assert kept.tuned_choices(config, "cpu", ChoiceLog(quiet=True)) is None
    assert "2 forms were tried before" in fastarat("tune", *SHAPE).err
    assert told == [[], [Tried(Choices(), None, 0.1, 100.0), Tried(HALF, None, 0.1, 200.0, (1.9, 2.0, 2.1))]]
    monkeypatch.setattr(module, "try_all", try_all)
    whole = fastarat("tune", *SHAPE)
    assert whole.code == 0
    monkeypatch.setattr(module, "try_all", interrupted)
    assert "what was tuned before stays" in fastarat("tune", *SHAPE, "--again").err and told[-1] == []
    assert fastarat("tune", *SHAPE).out == whole.out
    assert kept.tuned_choices(config, "cpu", ChoiceLog(quiet=True)) == HALF


def test_where_nothing_can_be_kept_that_is_said_once(fastarat, trials, monkeypatch):
    def by_forms(setting, advance, before, keep_so_far):
        tried, _ = try_all(setting, advance)
        for number in range(1, len(tried) + 1):
            keep_so_far(tried[:number])
        return tried, {}

    try_all = module.try_all
    monkeypatch.setattr(module, "try_all", by_forms)
    monkeypatch.setattr(kept, "cache_folder", lambda: None)
    result = fastarat("tune", *SHAPE)
    assert result.code == 0 and result.err.count("what was tuned is not kept") == 1 and "takes bf16" not in result.err


def test_a_training_takes_it_up_and_says_so_and_a_name_wins(fastarat, trials, tmp_path):
    fastarat("tune", *SHAPE)

    def dtype(out, *flags):
        result = fastarat("train", "digits-arat", *OPEN, *flags, "--out", tmp_path / out)
        assert result.code == 0
        (session,) = json.loads((tmp_path / out / "record.json").read_text())["sessions"]
        return session["dtype"], [c["why"] for c in session["choices"] if c["what"] == "dtype"], result.err

    chosen, (why,), said = dtype("tuned")
    assert chosen == "bf16" and why.endswith("2.00 (1.90-2.10)")
    assert "dtype: bf16 (tuned on this machine" in said
    assert dtype("named", "--dtype", "fp32")[:2] == ("fp32", [])


def test_a_run_that_goes_on_stays_as_it_began_whatever_was_tuned_since(fastarat, trials, tmp_path):
    flags = ("digits-arat", *OPEN, "--out")

    def dtypes(out, *more):
        assert fastarat("train", *flags, tmp_path / out, *more).code == 0
        return [session["dtype"] for session in json.loads((tmp_path / out / "record.json").read_text())["sessions"]]

    (before,) = dtypes("untuned")
    fastarat("tune", *SHAPE)
    assert dtypes("tuned") == ["bf16"]
    assert dtypes("untuned", "--resume", "--epochs", "2") == [before, before]
    (kept.place_for(kept.key_of(parse_arguments([*flags, "x"]).config, "cpu"))).unlink()
    assert dtypes("tuned", "--resume", "--epochs", "2") == ["bf16", "bf16"]
    assert dtypes("tuned", "--resume", "--epochs", "3", "--dtype", "fp32")[-1] == "fp32"


def test_kernels_that_lost_their_place_are_named_and_a_training_does_without_them(fastarat, mixed, tmp_path):
    said = fastarat("tune", *SHAPE)
    assert "left out; alone: fails: UnsupportedInput: x is not dense" in said.out and "augment" in said.out
    parts = "triton without pgd_step and augment and fused_batch_norm@64x4x4"
    assert f"takes fp32, {parts}, eager, stem channels: 8" in said.err
    assert fastarat("tune", *SHAPE).out == said.out

    def session(*flags):
        result = fastarat("train", "digits-arat", *OPEN, *flags)
        assert result.code == 0
        *_, last = json.loads((flags[1] / "record.json").read_text())["sessions"]
        values = {choice["what"]: choice["value"] for choice in last["choices"]}
        assert last["stem_channels"] == (8 if "stem channels" in values else None)
        return last["kernels"], last["without"], values.get("kernels"), values.get("stem channels"), result.err

    run = "--out", tmp_path / "run"
    names = ["pgd_step", "augment", "fused_batch_norm@64x4x4"]
    *found, text = session(*run)
    assert found == ["triton", names, parts, "8"] and f"kernels: {parts} (tuned on this machine" in text
    assert [*session(*run, "--resume", "--epochs", "2")[:4]] == found
    assert session("--out", tmp_path / "named", "--kernels", "pytorch")[:4] == ("pytorch", [], None, None)
    assert load_file(run[1] / "model.safetensors")["conv1.weight"].shape == (32, 1, 3, 3)
    fastarat("report", run[1], "--num-images", "0")
    assert f"kernels {parts}, stem channels 8" in (run[1] / "report.html").read_text()
    # What was tuned is not what is named now: the stem stays with the run.
    assert session(*run, "--resume", "--epochs", "3", "--kernels", "pytorch")[:4] == ("pytorch", [], None, "8")


def test_kernels_that_fail_in_a_training_give_way_as_a_whole(fastarat, mixed, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UnsupportedInput("x is not dense")

    fastarat("tune", *SHAPE)
    monkeypatch.setitem(IMPLEMENTATIONS, "triton", replace(TRITON, start_point=refuse))
    stems = []

    def noted(training, choices):
        stems.append(type(training.parts.model.conv1))
        return step_of(training, choices)

    monkeypatch.setattr("fastarat.training.compiling.fallback.step_of", noted)
    result = fastarat("train", "digits-arat", *OPEN, "--out", tmp_path / "run")
    assert result.code == 0 and "kernels: pytorch (x is not dense)" in result.err
    assert "stem channels: the images' (what was tuned gives way as a whole)" in result.err and stems == [nn.Conv2d]
    (session,) = json.loads((tmp_path / "run" / "record.json").read_text())["sessions"]
    assert (session["kernels"], session["without"], session["stem_channels"]) == ("pytorch", [], None)


def test_several_processes_are_not_tuned(fastarat, trials):
    result = fastarat("tune", "digits-arat", "--procs", "2")
    assert result.code == 2 and "leave --gpus and --procs out" in result.err and not trials


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--batch", "100000"), "batch 100000 is larger than the 1437 training images"),
        (("--num-train-images", "64", "--batch", "128"), "batch 128 is larger than the 64"),
        (("--num-validation-images", "1437"), "some training and 1437 validation images are more than"),
    ],
)
def test_what_a_training_refuses_of_its_images_is_refused(fastarat, trials, flags, words):
    for name in ("tune", "train"):
        result = fastarat(name, "digits-at", "--device", "cpu", *flags)
        assert result.code == 2 and words in result.err and not trials
