"""`fastarat analyze` looks at a run and all that it kept; what cannot be analysed says why in one line."""

import contextlib
import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from fastarat.__main__ import main
from fastarat.analysis import analyze
from fastarat.analysis.pictures import images as report_images
from fastarat.analysis.pictures import layers as report_analysis
from fastarat.common.files import write_text
from fastarat.runs.checkpoint import load_checkpoint
from fastarat.runs.run import Run
from tests.helpers.command_line import TINY, assert_same_run, newest, state_of

FEW = ("--num-images", "20", "--batches", "1", "--device", "cpu")
PICTURES = ("conflict", "mixture", "features", "surface", "perturbations", "gallery")
EMA = ("--averaging.kind", "ema", "--averaging.start-epoch", "1", "--num-validation-images", "100")


def digests(path: Path) -> dict[str, str]:
    """What every file in a directory holds."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A run of two epochs that kept a snapshot of each, and its best; made once."""
    run = tmp_path_factory.mktemp("kept") / "run"
    settings = (*TINY, *EMA, "--checkpoint.history", "1", "--evaluation.every-epochs", "1")
    with contextlib.redirect_stderr(io.StringIO()):
        assert main(["train", "digits-arat", *settings, "--out", str(run)]) == 0
    return run


def test_a_run_is_analysed_at_every_state_it_kept_and_stays_as_it_was(fastarat, kept, tmp_path):
    run = shutil.copytree(kept, tmp_path / "run")
    before = digests(run)
    result = fastarat("analyze", run, *FEW)
    assert result.code == 0 and "2 (" in result.out and "spread" in result.out
    after = digests(run)
    written = {name for name in after if name not in before}
    assert written == {"analysis/analysis.json", *(f"analysis/{name}.png" for name in PICTURES)}
    assert before.items() <= after.items()
    for name in PICTURES:
        assert (run / f"analysis/{name}.png").read_bytes().startswith(b"\x89PNG")

    found = json.loads((run / "analysis/analysis.json").read_text())
    names = [name for state in found["states"] for name in state["names"]]
    assert sorted(names) == ["best", "epoch 1", "epoch 2", "last"]
    assert [state["epoch"] for state in found["states"]] == [1, 2]
    assert found["aligned_layers"] == ["layer2.0.bn1", "layer2.0.bn2"] and found["averaging"] == "ema"
    last = found["states"][-1]
    for name in ("gradient_conflict", "naive_conflict", "mixture_distance", "feature_cosine", "spread"):
        assert found["summary"][name] == last["means"][name] is not None
    features = last["layers"]["feature_cosine"]
    mean = (features["layer2.0.bn1"] + features["layer2.0.bn2"]) / 2
    assert last["means"]["feature_cosine"] == pytest.approx(mean, abs=2e-6)

    told = []
    first = analyze(kept, num_images=20, batches=1, epochs=[1], advance=told.append)
    assert first["states"][0] == found["states"][0] and first["states"][0]["epoch"] == 1
    assert {**first, "states": (), "summary": {}} == {**found, "run": str(kept), "states": (), "summary": {}}
    assert sum(told) == pytest.approx(100)


def test_an_interrupted_run_whose_images_have_moved_is_analysed_as_far_as_it_came(
    fastarat, kept, tmp_path, monkeypatch
):
    for module, names in ((report_analysis, PICTURES[:3]), (report_images, PICTURES[3:])):
        for name in names:  # drawn once is enough
            monkeypatch.setattr(module, f"{name}_picture", lambda path, shown: write_text(path, "no picture"))
    run = shutil.copytree(kept, tmp_path / "run")
    (run / "model.safetensors").unlink()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": "/gone/images"}))
    refused = fastarat("analyze", run, *FEW)
    assert refused.code == 2 and "/gone/images" in refused.error and "--data" in refused.error

    how = ("--data", "digits", "--epochs", "1", "--json", "--out", tmp_path / "out")
    result = fastarat("analyze", run, *FEW, *how)
    assert result.code == 0 and "has not finished" in result.err
    found = json.loads((tmp_path / "out/analysis.json").read_text())
    assert result.json == {"run": str(run), "out": str(tmp_path / "out"), **found["summary"]}
    assert "epoch 2" not in [name for state in found["states"] for name in state["names"]]


def test_a_run_that_keeps_snapshots_trains_to_the_same_bits(fastarat, trained, tmp_path):
    assert fastarat("train", "digits-arat", *TINY, "--checkpoint.history", "2", "--out", "kept").code == 0
    assert_same_run(trained, tmp_path / "kept")
    snapshots = Run(tmp_path / "kept").snapshots()
    assert list(snapshots) == [2]
    snapshot, checkpoint = state_of(snapshots[2]), state_of(newest(trained))
    assert all(torch.equal(value, checkpoint["model"][name]) for name, value in snapshot["model"].items())
    assert "momenta" not in snapshot and "method" in snapshot


def test_a_run_that_goes_on_from_before_its_snapshots_takes_them_anew(fastarat, kept, tmp_path):
    run = shutil.copytree(kept, tmp_path / "run")
    for step in sorted((run / "checkpoints").glob("step-*.pt"))[1:]:
        step.unlink()
    there = load_checkpoint(Run(run).checkpoint())["epoch"] - 1
    (run / "checkpoints/history/epoch-000009.pt").write_bytes(b"of another training")
    assert there < 9 and fastarat("train", "--resume", run).code == 0
    assert list(Run(run).snapshots()) == [1, 2]
    ours, theirs = (state_of(Run(path).snapshots()[2]) for path in (run, kept))
    assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--epochs", "7"), "no snapshot of epoch 7: it has 1, 2"),
        (("--num-images", "0"), "--num-images 0"),
        (("--batches", "1000"), "--batches 1000: an epoch has"),
        (("--seed", "-1"), "--seed -1"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_asked_of_a_run_is_said(fastarat, kept, flags, said, tmp_path):
    result = fastarat("analyze", kept, "--out", tmp_path / "out", *flags)
    assert result.code == 2 and said in result.error


def test_a_place_that_holds_no_run_is_named(fastarat, kept, trained, tmp_path):
    assert "no run directory" in fastarat("analyze", tmp_path / "nowhere").error
    file = fastarat("analyze", kept / "model.safetensors")
    assert file.code == 2 and "is a file" in file.error
    empty = shutil.copytree(kept, tmp_path / "empty")
    shutil.rmtree(empty / "checkpoints")
    result = fastarat("analyze", empty)
    assert result.code == 2 and "no checkpoint" in result.error and "--resume" in result.error
    assert "--checkpoint.history" in fastarat("analyze", trained, "--epochs", "1").error


def test_an_out_that_cannot_be_written_is_known_before_the_work(fastarat, kept, tmp_path):
    (tmp_path / "file").write_text("")
    result = fastarat("analyze", kept, "--out", tmp_path / "file")
    assert result.code == 2 and "another --out" in result.error


def test_a_snapshot_that_was_cut_off_is_named(fastarat, kept, tmp_path):
    run = shutil.copytree(kept, tmp_path / "run")
    broken = Run(run).snapshots()[2]
    broken.write_bytes(broken.read_bytes()[:1000])
    result = fastarat("analyze", run, *FEW)
    assert result.code == 2 and str(broken) in result.error and "truncated" in result.error
