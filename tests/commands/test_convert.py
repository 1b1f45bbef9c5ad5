"""Checkpoints of the published AR-AT code become runs of ours that give the published logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastarat.common.locks import is_locked
from fastarat.runs.deployed import load_deployed
from fastarat.training.published_checkpoint import convert
from fastarat.verification.golden import named_tensor
from tests.helpers.command_line import newest

# The golden logits are float64; ours are float32 through up to twenty convolutions: 1e-7 an operation.
FLOAT32 = {"rtol": 1e-3, "atol": 1e-4}


def _vectors(golden, name):
    with np.load(golden / f"arat_{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _published(golden, name):
    """The published code's `state_dict` for a golden file: shapes from a net of ours, values from the names."""
    from fastarat.config.method import ARATConfig
    from fastarat.methods.arat import ARAT
    from fastarat.models.features import feature_widths, tap_layers
    from fastarat.models.published_names import published_model, published_predictors, split_layers
    from fastarat.models.registry import build_model

    vectors = _vectors(golden, name)
    layers = tuple(key.partition("/")[2] for key in vectors if key.startswith("feature_clean/"))
    model = build_model(str(vectors["arch"]), int(vectors["num_classes"]))
    tap_layers(model, layers)
    method = ARAT(ARATConfig(layers=layers), feature_widths(model, (3, 32, 32), layers))
    tensors = published_model(model.state_dict(), split_layers(model))
    tensors |= published_predictors(method.state_dict(), method.layers)
    salt = int(vectors["salt"])
    named = {key: torch.from_numpy(named_tensor(key, tuple(t.shape), salt)).float() for key, t in tensors.items()}
    assert {key.partition("/")[2] for key in vectors if key.startswith("grad_head/")} <= named.keys()
    return named


@pytest.fixture(scope="module")
def states():
    """Published state dicts that were built already."""
    return {}


@pytest.fixture
def published(golden, states):
    """`published(name)`: a fresh copy of the state dict of a golden net."""

    def build(name="wrn16_2"):
        states.setdefault(name, _published(golden, name))
        return dict(states[name])

    return build


def _assert_golden(golden, name, run):
    vectors = _vectors(golden, name)
    images = torch.from_numpy(vectors["images"]).permute(0, 3, 1, 2).float() / 255
    for branch in ("clean", "adv"):
        model, _ = load_deployed(run, "last", branch)
        with torch.no_grad():
            assert np.allclose(model(images).numpy(), vectors[f"eval_logits_{branch}"], **FLOAT32), branch
    deployed, _ = load_deployed(run)
    with torch.no_grad():
        assert np.allclose(deployed(images).numpy(), vectors["eval_logits_adv"], **FLOAT32)


@pytest.mark.no_cover  # what it runs is counted by others
@pytest.mark.parametrize("name", ["wrn16_2", "resnet18"])
def test_a_converted_checkpoint_gives_the_published_logits_of_both_branches(
    fastarat, golden, published, tmp_path, name
):
    torch.save(published(name), "published.pt")
    result = fastarat("convert", "published.pt", "--out", "run", "--json")
    assert result.code == 0 and result.json["model"] == {"wrn16_2": "wrn-16-2", "resnet18": "resnet18"}[name]
    _assert_golden(golden, name, tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["data"] == "cifar10"


def _prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


def _counted(state):
    counts = {name.replace("running_mean", "num_batches_tracked") for name in state if "running_mean" in name}
    return {**state, **{name: torch.tensor(7) for name in counts}}


def _without_predictors(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("predictor.")}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 100},
        lambda state: {"model": _prefixed(state)},
        _prefixed,
        _counted,
        _without_predictors,
    ],
    ids=["state_dict", "model of a parallel wrapper", "module.", "num_batches_tracked", "no predictors"],
)
def test_the_ways_in_which_a_checkpoint_is_wrapped_make_no_difference(fastarat, golden, published, tmp_path, wrap):
    torch.save(wrap(published()), "published.pth")
    assert fastarat("convert", "published.pth", "--out", "run").code == 0
    _assert_golden(golden, "wrn16_2", tmp_path / "run")


def test_safetensors_are_read_too(fastarat, golden, published, tmp_path):
    save_file(published(), "published.safetensors")
    assert fastarat("convert", "published.safetensors", "--out", "run").code == 0
    again = convert(Path("published.safetensors"), Path("again"))
    assert not is_locked(again.lock_file)  # a program may go on training with it at once
    _assert_golden(golden, "wrn16_2", tmp_path / "run")


LAYER = "block2.layer.0.bn1.adv.weight"


def _cut(state):
    return {**state, LAYER: state[LAYER][:3]}


def _lacking(state):
    return {name: tensor for name, tensor in state.items() if name != LAYER}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_lacking, f"lacks {LAYER}"),
        (lambda state: {**state, "block9.weight": torch.ones(1)}, "unknown tensor block9.weight"),
        (_cut, f"{LAYER} is (3,), expected (32,)"),
        (lambda state: {"conv.weight": torch.ones(1)}, "no checkpoint of the published AR-AT code"),
        (lambda state: {"epoch": 3}, "no state_dict"),
    ],
    ids=["missing", "extra", "misshapen", "foreign", "none"],
)
def test_a_tensor_that_does_not_fit_is_named(fastarat, published, tmp_path, change, named):
    torch.save(change(published()), "published.pt")
    result = fastarat("convert", "published.pt", "--out", "run")
    assert result.code == 2 and named in result.error
    assert not (tmp_path / "run").exists()


def test_what_is_no_file_or_fastarats_own_is_not_taken_for_a_damaged_checkpoint(fastarat, trained):
    assert "run is a directory: give a file" in fastarat("convert", trained, "--out", "new").error
    for path in (trained / "model.safetensors", newest(trained)):
        error = fastarat("convert", path, "--out", "new").error
        assert "is fastarat's own" in error and "fastarat eval" in error


def test_a_converted_run_is_exported_and_evaluated_and_goes_on_training(fastarat, published, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "no-data").mkdir()
    from PIL import Image

    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "pictures" / split / str(label)
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    torch.save(published(), "published.pt")
    assert fastarat("convert", "published.pt", "--out", "run", "--data", "pictures").code == 0
    assert fastarat("export", "run").code == 0
    assert fastarat("eval", "run", "--steps", "1", "--json").json["num_images"] == 20
    more = ("--epochs", "1", "--evaluation.steps", "1")
    result = fastarat("train", "--resume", "run", *more)
    # A checkpoint of batches of 128 cannot go on with the 20 images there are.
    assert result.code == 2 and "smaller --batch" in result.error
    assert fastarat("convert", "published.pt", "--out", "run").code == 2
