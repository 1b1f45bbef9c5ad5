"""Nets of torchvision and timm are trained, kept and exported by name.

Both packages are small stand-ins here: real ones need a torch built for them. They have what differs between nets: a
sum in place behind a batch-norm, activations in place, a batch-norm with its activation in it, and none at all.
"""

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON
from safetensors.torch import load_file
from torch import Tensor, nn

from fastarat.common.distributed import World
from fastarat.common.errors import UserError
from fastarat.config.method import ARATConfig, ARRESTConfig, ATConfig, TRADESConfig
from fastarat.config.model import ModelConfig
from fastarat.config.recipes import recipe
from fastarat.data.images.dataset import Images, from_splits
from fastarat.data.open import open_dataset
from fastarat.methods.registry import build_method
from fastarat.models.convert import convert_to_split_batch_norm, plain_branch
from fastarat.models.features import tap_layers
from fastarat.models.foreign import check_image_sizes
from fastarat.models.registry import build_model, build_plain_model
from fastarat.models.split_batch_norm import SplitBatchNorm2d, forward, forward_context, forward_with_features
from fastarat.runs.export import export
from fastarat.runs.weights import Description, load_model
from fastarat.training.build import build_training

NAMES = ("torchvision/residual", "timm/activated")


class Residual(nn.Module):
    """As torchvision's blocks are written."""

    def __init__(self, num_classes: int, channels: int = 3):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(x))
        out += x
        return self.fc(self.relu(out).mean((2, 3)))


class NormAct(nn.BatchNorm2d):
    """As timm's: dropout and activation are the batch-norm's."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(num_features, eps, momentum)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class Activated(nn.Module):
    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, 8, 3, padding=1, bias=False), NormAct(8)
        self.bn.act = nn.SiLU(inplace=True)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


class WithoutNorms(nn.Module):
    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 8, 3), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


class TwoOutputs(Residual):
    aux_logits = True


@pytest.fixture(autouse=True)
def packages(monkeypatch) -> None:
    """What of torchvision and timm is called."""
    torchvision, models, timm = (ModuleType(name) for name in ("torchvision", "torchvision.models", "timm"))
    classifiers = {"residual": Residual, "residual50": Residual, "inception": TwoOutputs}

    def get_model(name: str, weights: None, num_classes: int) -> nn.Module:
        assert weights is None
        return classifiers[name](num_classes)

    def list_models(module: ModuleType | None = None) -> list[str]:
        return [*classifiers, *([] if module is models else ["detector"])]

    def create_model(name: str, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        assert not pretrained
        return {"activated": Activated, "vit": WithoutNorms}[name](num_classes, in_chans)

    models.__dict__.update(get_model=get_model, list_models=list_models)
    torchvision.__dict__.update(models=models)
    timm.__dict__.update(create_model=create_model, list_models=lambda: ["activated", "vit"])
    for module in (torchvision, models, timm):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def images(channels: int = 3) -> Tensor:
    return torch.rand(4, channels, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


def shaken(model: nn.Module) -> nn.Module:
    """In float64, both branches with statistics and parameters of their own."""
    model.double().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SplitBatchNorm2d):
                for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    tensor.add_(torch.rand_like(tensor))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_net_is_split_and_both_branches_give_its_own_outputs(name):
    torch.manual_seed(5)
    plain = build_plain_model(name, 7).double()
    torch.manual_seed(5)
    split, x = build_model(name, 7).double(), images()
    assert not split.training and not plain.training
    assert any(isinstance(layer, SplitBatchNorm2d) for layer in split.modules())
    for branch in ("clean", "adv", "both"):
        assert torch.equal(forward(split, x, branch, "eval"), plain(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_a_branch_of_it_is_the_packages_net_again(name, branch):
    split = shaken(build_model(name, 7))
    again, x = build_plain_model(name, 7).double(), images()
    again.load_state_dict(plain_branch(split, branch).state_dict())
    # float64: the same arithmetic in another order.
    torch.testing.assert_close(again(x), forward(split, x, branch, "eval"), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "layers"), [(NAMES[0], ("bn1", "bn2")), (NAMES[1], ("bn",))])
def test_what_a_net_does_in_place_leaves_the_tapped_features_their_gradients(name, layers):
    net, results = shaken(build_model(name, 7)), []
    tap_layers(net, layers)
    for kernels in (PYTORCH, TRITON):
        forward_context(net).kernels = kernels
        net.zero_grad()
        torch.manual_seed(1)
        logits, features = forward_with_features(net, images(), "both", "frozen")
        (logits.square().sum() + sum(z.square().sum() for z in features.values())).backward()
        results.append([logits, *features.values(), *(p.grad for p in net.parameters())])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
def test_a_tapped_layer_that_is_none_of_the_batch_norms_may_be_changed_in_place_too(kernels):
    net = convert_to_split_batch_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)))
    tap_layers(net, ("1",))
    forward_context(net).kernels = kernels
    logits, features = forward_with_features(net.double(), images(), "both", "train")
    (logits.square().sum() + features["1"].square().sum()).backward()
    assert net[1].weight.grad.any()


def test_sizes_of_images_that_a_net_does_not_take_are_told_before_the_training():
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2] == 224, "Input height (64) doesn't match model (224)."
            return x

    check_image_sizes(Fixed(), "timm/vit", 3, [(224, 224)])
    with pytest.raises(UserError, match=r"timm/vit takes no images of 64x64 \(Input height .*\): give another size"):
        check_image_sizes(Fixed(), "timm/vit", 3, [(224, 224), (64, 64)])


@pytest.mark.parametrize("part", ["model", "teacher"])
def test_a_net_and_a_teacher_are_asked_for_their_sizes_before_the_training(part, monkeypatch):
    def forward(self: Residual, x: Tensor, real=Residual.forward) -> Tensor:
        assert x.shape[2] == 224, "Input height doesn't match model."
        return real(self, x)

    monkeypatch.setattr(Residual, "forward", forward)
    digits = open_dataset("digits")
    parts = [Images(np.repeat(s.images, 3, axis=3), s.labels) for s in (digits.decoded_train, digits.test)]
    config = recipe("digits-lbgat")
    if part == "model":
        config = replace(config, model=ModelConfig(NAMES[0]))
    else:
        config = replace(config, method=replace(config.method, teacher=NAMES[0]))
    with pytest.raises(UserError, match=f"{NAMES[0]} takes no images of 8x8"):
        build_training(config, from_splits("colours", *parts, digits.classes, 16), World(torch.device("cpu")))


def test_timm_takes_any_number_of_channels_and_torchvision_three():
    assert build_plain_model("timm/activated", 5, 1)(torch.rand(2, 1, 8, 8)).shape == (2, 5)
    with pytest.raises(UserError, match="3 channels, these have 1"):
        build_plain_model("torchvision/residual", 5, 1)


@pytest.mark.parametrize(("name", "package"), [("torchvision/residual", "torchvision"), ("timm/activated", "timm")])
def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(name, package, monkeypatch):
    for module in ("torchvision.models", "torchvision", "timm"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=rf"{name} needs {package}: pip install {package}$"):
        build_model(name, 5)


def test_a_package_built_for_another_torch_is_said_in_one_line(tmp_path, monkeypatch):
    for module in ("torchvision.models", "torchvision"):
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('no operator nms\\nand more')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"torchvision cannot be imported \(no operator nms\)") as failure:
        build_model("torchvision/residual", 5)
    assert "\n" not in str(failure.value)


def test_an_unknown_foreign_net_is_answered_with_the_nearest_ones():
    with pytest.raises(UserError, match=r"torchvision's 3 .*'torchvision/residual' or 'torchvision/residual50'"):
        build_model("torchvision/residuall", 5)
    with pytest.raises(UserError, match="none of torchvision's"):
        build_model("torchvision/detector", 5)


def test_a_net_of_two_outputs_is_refused():
    with pytest.raises(UserError, match="more than logits"):
        build_model("torchvision/inception", 5)


@pytest.mark.parametrize("name", ["torchvision/", "timm/a b", "keras/resnet50", "torchvision"])
def test_only_names_of_the_two_packages_are_taken(name):
    assert ModelConfig(name).problems() and not ModelConfig("timm/resnet26").problems()
    with pytest.raises(UserError, match="torchvision/NAME, timm/NAME"):
        build_model(name, 5)


def test_arat_on_a_net_without_batch_norms_is_refused_and_other_methods_train_it():
    with pytest.raises(UserError, match="timm/vit has no batch-norms"):
        build_model("timm/vit", 5)
    net, x, y = build_model("timm/vit", 5, 3, "shared").double(), images(), torch.tensor([0, 1, 2, 3])
    for settings in (ATConfig(), TRADESConfig()):
        loss, _ = build_method(settings, net, (3, 8, 8)).loss(net, x, x.flip(0), y)
        assert torch.autograd.grad(loss, list(net.parameters()))[0].any()


def test_a_foreign_net_asks_for_the_layers_that_it_does_not_name():
    with pytest.raises(UserError, match=r"--method\.layers"):
        build_method(ARATConfig(), build_model(NAMES[0], 5), (3, 8, 8))
    assert build_method(ARATConfig(layers=("bn1", "bn2")), build_model(NAMES[0], 5), (3, 8, 8)).layers == ("bn1", "bn2")
    with pytest.raises(UserError, match=r"--method\.layer$"):
        build_method(ARRESTConfig(), build_model(NAMES[0], 5, batch_norm="shared"), (3, 8, 8))


class Doubling(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_batch_norm_that_does_something_else_besides_is_refused_by_name():
    with pytest.raises(UserError, match="'0' is a Doubling"):
        convert_to_split_batch_norm(nn.Sequential(Doubling(3)))


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_foreign_net_is_loaded_through_its_package(name, tmp_path):
    description = Description(name, 2, 3, (8, 8), 255, ("cat", "dog"), "pets", "linf", 4, "arat")
    split, x = shaken(build_model(name, 2)).float(), images().float()
    plain = plain_branch(split)
    export(plain, description, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(build_plain_model(name, 2).state_dict())
    source = (tmp_path / "model.py").read_text()
    assert f"Needs torch and {name.partition('/')[0]}:" in source and "fastarat" not in source
    spec = importlib.util.spec_from_file_location("exported_model", tmp_path / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for model in (module.load(), load_model(tmp_path / "model.safetensors")[0]):
        assert not model.training
        torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-6)  # float32, another memory format
