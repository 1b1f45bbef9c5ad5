"""A net stored as data gives the logits of the same net in plain torch; what does not fit is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fastarat.common.errors import UserError
from fastarat.verification.stored_net import load_kit_model

LAYERS = [
    {"op": "quantize", "levels": 16},
    {"op": "conv2d", "name": "c", "in": 1, "out": 3, "kernel": 3, "stride": 2, "padding": 1, "bias": False},
    {"op": "batchnorm2d", "name": "n"},
    {"op": "relu"},
    {"op": "conv2d", "name": "d", "in": 3, "out": 2, "kernel": 2, "stride": 1, "padding": 0, "bias": True},
    {"op": "global_avgpool"},
    {"op": "flatten"},
    {"op": "linear", "name": "l", "in": 2, "out": 4, "bias": True},
    {"op": "scale", "factor": 100.0},
]


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    stored = {"c.weight": torch.randn(3, 1, 3, 3), "d.weight": torch.randn(2, 3, 2, 2), "d.bias": torch.randn(2)}
    stored |= {f"n.{leaf}": torch.randn(3) for leaf in ("weight", "bias", "running_mean")}
    return {
        **stored,
        "n.running_var": torch.rand(3) + 0.5,
        "l.weight": torch.randn(4, 2),
        "l.bias": torch.randn(4),
    }


def write(folder: Path, tensors: dict[str, Tensor], layers: list = LAYERS, name: str = "own", **more: str) -> Path:
    (folder / f"arch_{name}.json").write_text(json.dumps({"name": name, "layers": layers, **more}))
    save_file(tensors, folder / more.get("weights", f"{name}.safetensors"))
    return folder


def by_hand(t: dict[str, Tensor], x: Tensor) -> Tensor:
    z = F.conv2d((x * 16).round() / 16, t["c.weight"], stride=2, padding=1)
    mean, var, weight, bias = (t[f"n.{k}"].view(1, 3, 1, 1) for k in ("running_mean", "running_var", "weight", "bias"))
    z = ((z - mean) / (var + 1e-5).sqrt() * weight + bias).relu()
    z = F.conv2d(z, t["d.weight"], t["d.bias"]).mean((2, 3))
    return 100 * (z @ t["l.weight"].T + t["l.bias"])


@pytest.mark.parametrize("counter", [{}, {"n.num_batches_tracked": torch.tensor(7)}], ids=["without", "counted"])
def test_every_operation_gives_the_logits_of_plain_torch(tmp_path, tensors, counter):
    model = load_kit_model(write(tmp_path, {**tensors, **counter}), "own").double()
    x = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    expected = by_hand({name: t.double() for name, t in tensors.items()}, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert not model.training


def test_rounding_takes_halves_to_even_and_has_no_gradient(tmp_path):
    x = torch.tensor([0.5, 1.5, 2.5, 3.4]).div(4).requires_grad_()
    out = load_kit_model(write(tmp_path, {}, [{"op": "quantize", "levels": 4}]), "own")(x)
    assert out.tolist() == [0, 0.5, 0.5, 0.75]
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert not gradient.any()


def test_a_description_may_name_another_nets_weights(tmp_path, tensors):
    write(tmp_path, tensors)
    write(tmp_path, tensors, [*LAYERS, {"op": "scale", "factor": 2}], "twice", weights="own.safetensors")
    x = torch.rand(2, 1, 6, 6)
    assert torch.equal(load_kit_model(tmp_path, "twice")(x), 2 * load_kit_model(tmp_path, "own")(x))
    assert not (tmp_path / "twice.safetensors").exists()


def without(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("layers", "missing", "message"),
    [
        ([{"op": "conv3d"}], (), "layer 0: unknown operation 'conv3d'.*did you mean 'conv2d'"),
        (LAYERS, ("l.weight",), r"layer 7 \(linear\): 'weight'"),
        (LAYERS, ("n.running_var",), r"layer 2 \(batchnorm2d\).*running_var"),
        ([{"op": "scale"}], (), r"layer 0 \(scale\): factor is None, expected a number"),
        ([{"op": "scale", "factor": "x"}], (), r"layer 0 \(scale\): factor is 'x', expected a number"),
        ([{"op": "quantize", "levels": True}], (), r"layer 0 \(quantize\): levels is True"),
        ([{**LAYERS[1], "stride": "same"}], (), r"layer 0 \(conv2d\): stride is 'same', expected 1 to 64"),
        ([{**LAYERS[1], "stride": 2**62}], (), r"layer 0 \(conv2d\): stride is \d+, expected 1 to 64"),
        ([{**LAYERS[1], "padding": 10**6}], (), r"layer 0 \(conv2d\): padding is 1000000, expected 0 to 64"),
        ([{"op": "linear", "name": "c"}], (), r"layer 0 \(linear\)"),
        ([{"op": "conv2d"}], (), r"layer 0 \(conv2d\): 'weight'"),
        ([{"name": "c"}], (), "no description of a net"),
        ("relu", (), "no description of a net"),
    ],
)
def test_a_layer_that_does_not_fit_is_named(tmp_path, tensors, layers, missing, message):
    write(tmp_path, without(tensors, *missing), layers)
    with pytest.raises(UserError, match=message):
        load_kit_model(tmp_path, "own")


def test_files_that_are_missing_or_foreign_are_named(tmp_path, tensors):
    with pytest.raises(UserError, match=r"arch_own\.json does not exist"):
        load_kit_model(tmp_path, "own")
    write(tmp_path, tensors)
    (tmp_path / "own.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"own\.safetensors is truncated or no safetensors"):
        load_kit_model(tmp_path, "own")
    (tmp_path / "own.safetensors").unlink()
    with pytest.raises(UserError, match=r"own\.safetensors does not exist"):
        load_kit_model(tmp_path, "own")
    for text in ("[]", "{}", '{"layers": 3}', '{"layers": [], "weights": 3}'):
        (tmp_path / "arch_own.json").write_text(text)
        with pytest.raises(UserError, match=r"arch_own\.json is no description"):
            load_kit_model(tmp_path, "own")
    (tmp_path / "arch_own.json").write_text('{"layers": [], "weights": "../own.safetensors"}')
    with pytest.raises(UserError, match="not in its own folder"):
        load_kit_model(tmp_path, "own")


@pytest.mark.parametrize("name", ["plain", "scaled"])
def test_the_golden_nets_give_the_stored_logits(golden, name):
    kit = golden / "autoattack"
    stored, images = np.load(kit / "pgd_plain_Linf.npz"), torch.from_numpy(np.load(kit / "data.npz")["x_test"])
    factor = 100 if name == "scaled" else 1
    model = load_kit_model(kit, name)
    with torch.no_grad():
        close = torch.testing.assert_close
        close(model(images), factor * torch.from_numpy(stored["clean_logits_f32"]), rtol=0, atol=1e-4 * factor)
        exact = model.double()(images.double())
    close(exact, factor * torch.from_numpy(stored["clean_logits_f64"]), rtol=0, atol=1e-9 * factor)
