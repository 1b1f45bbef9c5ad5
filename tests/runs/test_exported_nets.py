"""Every net of ours can be exported: its `model.py` builds it from torch alone."""

import importlib.util
import re
from unittest.mock import patch

import pytest
import torch

import fastarat
from fastarat.config.model import MODELS
from fastarat.models.registry import build_plain_model
from fastarat.runs.export import export, model_py, write_onnx
from fastarat.runs.weights import Description

CHANNELS = {"digits": 1}


@pytest.mark.parametrize("name", [*MODELS, "wrn-10-1"])
def test_an_exported_net_is_the_net(name, tmp_path):
    channels = CHANNELS.get(name, 3)
    description = Description(name, 5, channels, (32, 32), 255, tuple("abcde"), "five", "linf", 4, "arat")
    model = build_plain_model(name, 5, channels)
    export(model, description, tmp_path)
    source = (tmp_path / "model.py").read_text()
    assert "Needs torch only" in source and not re.search(r"^(import|from) (fastarat|torchvision|timm)", source, re.M)
    spec = importlib.util.spec_from_file_location("exported_net", tmp_path / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(module.load()(x), model(x))
    assert source == model_py(description)


def test_places_may_be_texts(tmp_path):
    description = Description("digits", 2, 1, (8, 8), 255, ("a", "b"), "two", "linf", 4, "at")
    model = build_plain_model("digits", 2, 1)
    files = fastarat.export(model, description, str(tmp_path / "out"))
    assert files[0] == tmp_path / "out" / "model.safetensors"
    loaded, found = fastarat.load_model(str(files[0]))
    assert found == description and all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items()
    )


@pytest.mark.no_cover  # what it runs is counted by others
def test_a_net_for_large_images_becomes_onnx(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    description = Description("resnet18-imagenet", 5, 3, (64, 64), 255, tuple("abcde"), "five", "linf", 4, "arat")
    # Its kinds of layers, of which one block has all.
    with patch.dict(MODELS["resnet18-imagenet"][1], widths=(8,), strides=(2,), num_blocks=(1,)):
        model = build_plain_model("resnet18-imagenet", 5)
    write_onnx(tmp_path / "model.onnx", model, description)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        x = torch.rand(count, 3, 64, 64)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        # Another runtime's float32 convolutions.
        torch.testing.assert_close(torch.from_numpy(logits), model(x).detach(), rtol=1e-4, atol=1e-5)
