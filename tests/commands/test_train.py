"""Training from the command line, and the run directory that it leaves."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastarat.config import load_config
from fastarat.config.recipes import recipe
from fastarat.runs.deployed import load_deployed
from fastarat.runs.weights import load_model
from fastarat.training.evaluations import Evaluations
from tests.helpers.command_line import (
    ONE_EPOCH,
    TINY,
    assert_same,
    assert_same_run,
    metrics,
    newest,
    results_of,
    state_of,
)


def test_a_run_leaves_the_documented_directory(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {"checkpoints", "config.json", "metrics.jsonl", "model.safetensors", "record.json"}
    assert (trained / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((trained / "checkpoints").iterdir())] == [
        *("step-000000000.pt", "step-000000008.pt")
    ]
    assert [(line["epoch"], line["step"]) for line in metrics(trained)] == [(1, 4), (2, 8)]
    (session,) = json.loads((trained / "record.json").read_text())["sessions"]
    assert {choice["what"] for choice in session["choices"]} == {"device", "kernels", "loader"}
    assert all(choice["why"] for choice in session["choices"])
    assert session["torch"] == torch.__version__ and session["data"]["name"] == "digits"
    _, description = load_model(trained / "model.safetensors")
    assert (description.model, description.method, description.epoch) == ("digits", "arat", 2)


def test_the_configuration_is_complete_and_can_be_read_back(trained):
    config = load_config(trained / "config.json")
    assert (config.recipe, config.epochs, config.attack.steps) == ("digits-arat", 2, 1)
    assert config.optimizer == recipe("digits-arat").optimizer


def test_progress_is_one_plain_line_an_epoch_and_a_result(fastarat):
    result = fastarat("train", *TINY, "--out", "run")
    assert result.code == 0 and result.out == ""
    lines = result.err.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "test: clean" in lines[-2] and "clean" in lines[-1] and "fastarat eval run" in lines[-1]
    assert "\x1b" not in result.err and "\r" not in result.err


def test_without_a_recipe_the_digits_are_trained_in_a_directory_with_the_recipes_name(fastarat, tmp_path):
    result = fastarat("train", *ONE_EPOCH)
    (run,) = (tmp_path / "runs").iterdir()
    assert result.code == 0 and result.err.splitlines()[0] == f"digits-arat -> runs/{run.name}"
    assert run.name.startswith("digits-arat-2") and (run / "model.safetensors").exists()


@pytest.mark.parametrize("error", [lambda: torch.empty(2**50), lambda: np.empty(2**50)], ids=["torch", "numpy"])
def test_where_the_machine_has_too_little_memory_one_line_says_what_helps(fastarat, monkeypatch, error):
    monkeypatch.setattr("fastarat.training.train.start_training", lambda *_: error())
    result = fastarat("train", *ONE_EPOCH, "--out", "run")
    assert result.code == 1 and result.error == "out of memory at batch 16: start anew with a smaller --batch"


def test_a_run_without_memory_to_evaluate_goes_on_in_smaller_batches_as_its_line_says(fastarat, monkeypatch, trained):
    def evaluated(self, model):
        if len(self.training.metrics) == 1 and self.config.evaluation.batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return evaluate(self, model)

    evaluate = Evaluations.evaluate
    monkeypatch.setattr(Evaluations, "evaluate", evaluated)
    result = fastarat("train", *TINY, "--out", "a run")
    go_on = "fastarat train --resume 'a run' and a smaller --evaluation.batch"
    fix = f"if it was evaluating, go on with {go_on}, else start anew with a smaller --batch"
    assert result.code == 1 and result.error == f"out of GPU memory at batch 64: {fix}"
    assert fastarat("train", "--resume", "a run", "--evaluation.batch", "16").code == 0
    assert_same(load_file("a run/model.safetensors"), load_file(trained / "model.safetensors"), "weights")


def test_json_prints_the_result_for_a_program(fastarat):
    result = fastarat("train", "digits-at", *ONE_EPOCH, "--out", "run", "--json").json
    assert result["run"] == "run" and result["num_images"] == 50
    assert 0 <= result["robust"] <= result["clean"] <= 100


def test_from_repeats_a_run_bit_by_bit(fastarat, trained, tmp_path):
    assert fastarat("train", "--from", trained, "--out", "again").code == 0
    assert_same_run(trained, tmp_path / "again")


def test_another_seed_gives_another_run(fastarat, trained, tmp_path):
    assert fastarat("train", "--from", trained, "--seed", "1", "--out", "other").code == 0
    assert results_of(trained) != results_of(tmp_path / "other")


OVERRIDES = {
    "batch": 32,
    "seed": 3,
    "dtype": "fp32",
    "device": "cpu",
    "loader": "resident",
    "num-validation-images": 64,
    "model.name": "tiny",
    "attack.norm": "l2",
    "attack.eps-255": 64.0,
    "attack.step-255": 16.0,
    "attack.steps": 2,
    "attack.start": "none",
    "attack.batch-norm": "frozen",
    "attack.objective": "margin",
    "method.gamma": 3.0,
    "method.layers": ["layer3.0.bn1"],
    "method.stop-gradient": "none",
    "method.adversarial-weight": 0.7,
    "method.clean-weight": 0.3,
    "method.metric": "mse",
    "method.balance-images": 64,
    "method.batch-norm": "shared",
    "augment.crop-padding": 1,
    "optimizer.learning-rate": 0.05,
    "optimizer.momentum": 0.8,
    "optimizer.weight-decay": 0.001,
    "schedule.name": "steps",
    "schedule.milestones": [2, 3],
    "schedule.factor": 0.5,
    "schedule.rise": 0.3,
    "schedule.warmup-epochs": 1,
    "schedule.warmup-factor": 0.5,
    "averaging.kind": "ema",
    "averaging.decay": 0.9,
    "averaging.start-epoch": 1,
    "averaging.every-steps": 2,
    "averaging.reestimate": "published-code",
    "evaluation.every-epochs": 1,
    "evaluation.num-images": 40,
    "evaluation.num-clean-images": 60,
    "evaluation.steps": 2,
    "evaluation.step-255": 5.0,
    "evaluation.batch": 20,
    "evaluation.start": "published-code",
    "checkpoint.every-s": 5.0,
    "checkpoint.keep": 3,
}
SWITCHES = {
    "--method.no-predictor": ("method.predictor", False),
    "--method.no-auto-balance": ("method.auto-balance", False),
    "--method.balance-augmented": ("method.balance-augmented", True),
    "--augment.flip": ("augment.flip", True),
    "--sync-bn": ("sync-bn", True),
}


def test_every_override_lands_in_the_configuration_of_the_run(fastarat, tmp_path):
    flags = []
    for name, value in OVERRIDES.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert fastarat("train", *ONE_EPOCH, *flags, *SWITCHES, "--out", "run").code == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    for name, value in [*OVERRIDES.items(), *SWITCHES.values()]:
        found = config
        for part in name.replace("-", "_").split("."):
            found = found[part]
        assert found == value, name


ABLATIONS = [
    *(("--method.stop-gradient", side) for side in ("none", "adversarial", "symmetric")),
    *(("--method.batch-norm", kind) for kind in ("shared", "mixed")),
    *(("--method.metric", metric) for metric in ("mse", "kl")),
    ("--method.no-predictor",),
    ("--method.no-auto-balance", "--method.adversarial-weight", "1", "--method.clean-weight", "0"),
    ("--method.layers", "layer1.0.bn2"),
    ("--method.gamma", "0"),
    ("--attack.norm", "l2", "--attack.eps-255", "128"),
    ("--attack.batch-norm", "eval"),
    ("--attack.start", "none"),
]


@pytest.mark.parametrize("switch", ABLATIONS, ids=" ".join)
def test_every_switch_trains_and_makes_a_difference(fastarat, one_epoch, tmp_path, switch):
    assert fastarat("train", *ONE_EPOCH, *switch, "--out", "run").code == 0
    (line,) = metrics(tmp_path / "run")
    assert line["train"] != metrics(one_epoch)[0]["train"]
    assert all(abs(value) < 1000 for value in line["train"].values())


@pytest.mark.no_cover  # what it runs is counted by others
@pytest.mark.parametrize(("dtype", "num_images"), [("bf16", 32), ("fp16", 16)])
def test_half_precision_trains_on_the_cpu_close_to_single(fastarat, tmp_path, dtype, num_images):
    # One step in fp16, which skips the update of those whose gradients overflow until it has found its scale: whether
    # the first one does is a matter of rounding.
    few = (*ONE_EPOCH, "--num-train-images", str(num_images))
    for name in (dtype, "fp32"):
        assert fastarat("train", *few, "--dtype", name, "--out", name).code == 0
    half, single = (metrics(tmp_path / name)[0]["train"]["loss"] for name in (dtype, "fp32"))
    # bf16 keeps 8 bits of a number (0.4 %); over two steps the weights move apart by several such errors.
    assert half == pytest.approx(single, rel=0.05)


def test_plain_at_reports_nothing_of_a_clean_branch(fastarat, tmp_path):
    assert fastarat("train", "digits-at", *ONE_EPOCH, "--out", "run").code == 0
    assert set(metrics(tmp_path / "run")[0]["train"]) == {"loss", "adversarial_accuracy"}


# Every step is kept, so that the average can be computed again from what was averaged.
EVERY_STEP = ("--checkpoint.every-s", "0", "--checkpoint.keep", "20", "--averaging.start-epoch", "1")


def _weights_of_steps(run, steps):
    return [state_of(run / f"checkpoints/step-{step:09d}.pt")["model"]["conv1.weight"].double() for step in steps]


def test_the_deployed_ema_is_the_moving_average_of_every_step(fastarat, tmp_path):
    flags = ("--averaging.kind", "ema", "--averaging.decay", "0.5")
    assert fastarat("train", *TINY, *EVERY_STEP, *flags, "--out", "run").code == 0
    first, *others = _weights_of_steps(tmp_path / "run", range(1, 9))
    expected = first
    for weight in others:
        expected = 0.5 * expected + 0.5 * weight
    deployed = load_file(tmp_path / "run/model.safetensors")["conv1.weight"].double()
    assert torch.allclose(deployed, expected, rtol=1e-5, atol=1e-7)  # eight float32 roundings of 6e-8


def test_the_deployed_swa_is_the_mean_of_the_snapshots(fastarat, tmp_path):
    flags = ("--averaging.kind", "swa", "--averaging.every-steps", "2")
    assert fastarat("train", *TINY, *EVERY_STEP, *flags, "--out", "run").code == 0
    expected = torch.stack(_weights_of_steps(tmp_path / "run", (2, 4, 6, 8))).mean(0)
    deployed = load_file(tmp_path / "run/model.safetensors")["conv1.weight"].double()
    assert torch.allclose(deployed, expected, rtol=1e-5, atol=1e-7)  # four float32 roundings of 6e-8
    assert metrics(tmp_path / "run")[-1]["average"]["images"] == "test"


def test_validation_images_choose_the_best_epoch_and_its_weights_are_deployed(fastarat, tmp_path):
    flags = ("--epochs", "4", "--num-validation-images", "100", "--evaluation.every-epochs", "1")
    assert fastarat("train", *TINY, *flags, "--out", "run").code == 0
    run = tmp_path / "run"
    robust = [line["evaluation"]["robust"] for line in metrics(run)]
    assert {line["evaluation"]["images"] for line in metrics(run)} == {"validation"}
    best, _ = load_deployed(run, "best")
    assert state_of(run / "checkpoints/best.pt")["epoch"] - 1 == 1 + robust.index(max(robust))
    assert_same(dict(load_file(run / "model.safetensors")), dict(best.state_dict()))


def test_a_folder_of_images_trains_and_is_evaluated(fastarat, tmp_path):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, level in (("dark", 64), ("light", 192)):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(-40, 40, (8, 8, 3), generator=generator)
                Image.fromarray((level + noise).to(torch.uint8).numpy()).save(folder / f"{i}.png")
    flags = ("--epochs", "2", "--batch", "8", "--attack.steps", "1", "--evaluation.steps", "1")
    assert fastarat("train", "digits-arat", "--data", "pictures", *flags, "--out", "run").code == 0
    result = fastarat("eval", "run", "--steps", "2", "--json").json
    assert result["num_images"] == 8 and list(result["clean"]["per_class"]) == ["dark", "light"]


def test_the_published_codes_departures_are_trained_as_asked(fastarat, tmp_path):
    assert fastarat("train", *ONE_EPOCH, "--fidelity", "published-code", "--out", "run").code == 0
    config = load_config(tmp_path / "run/config.json")
    assert config.attack.start == config.evaluation.start == "published-code"
    assert metrics(tmp_path / "run")[0]["learning_rate"] == pytest.approx(0.02)  # a fifth of 0.1 in the first epoch
    assert state_of(newest(tmp_path / "run"))["step"] == 4
