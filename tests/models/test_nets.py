"""The nets have the sizes, shapes and aligned layers that the papers give them."""

import pytest
import torch
from torch import nn

from fastarat.common.errors import UserError
from fastarat.config.model import ModelConfig
from fastarat.models.registry import build_model, build_plain_model
from fastarat.models.split_batch_norm import SplitBatchNorm2d, forward


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_173_962 + 90 * 513),
        ("resnet18-w32", 10, 2_797_610),
        ("wrn-34-10", 10, 46_160_474),
        ("resnet18-imagenet", 1000, 11_689_512),
        ("resnet50", 1000, 25_557_032),
    ],
)
def test_plain_nets_have_the_published_number_of_parameters(name, num_classes, expected):
    with torch.device("meta"):
        assert num_parameters(build_plain_model(name, num_classes)) == expected


def test_a_split_net_has_its_batch_norm_parameters_twice():
    # Channels of ResNet-18's batch-norms: the stem, four a stage, and a shortcut in three stages.
    channels = 64 + 4 * 64 + 5 * 128 + 5 * 256 + 5 * 512
    with torch.device("meta"):
        assert num_parameters(build_model("resnet18", 10)) == 11_173_962 + 2 * channels
        for kind in ("shared", "mixed"):
            assert num_parameters(build_model("resnet18", 10, batch_norm=kind)) == 11_173_962


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("digits", 8, 1),
        ("tiny", 32, 3),
        ("wrn-10-1", 32, 3),
        ("wrn-16-2", 8, 3),
        ("resnet18-imagenet", 32, 3),
        ("resnet50", 33, 3),
    ],
)
def test_images_become_one_row_of_logits_each(name, size, channels):
    model = build_model(name, 7, channels)
    x = torch.rand(4, channels, size, size)
    with torch.no_grad():
        for branch in ("clean", "adv", "both"):
            assert forward(model, x, branch).shape == (4, 7)
        assert build_plain_model(name, 7, channels)(x).shape == (4, 7)


@pytest.mark.parametrize("kind", ["split", "shared", "mixed"])
def test_every_batch_norm_of_a_net_is_of_the_kind_asked_for(kind):
    layers = [layer for layer in build_model("tiny", 10, batch_norm=kind).modules() if "BatchNorm" in str(type(layer))]
    assert layers and all(isinstance(layer, SplitBatchNorm2d) and layer.kind == kind for layer in layers)


def test_the_aligned_layers_are_those_of_the_paper():
    with torch.device("meta"):
        stages = build_model("resnet18", 10).aligned_layers
        wide = build_model("wrn-34-10", 10).aligned_layers
    assert stages == ("layer4.0.bn1", "layer4.0.bn2", "layer4.1.bn1", "layer4.1.bn2")
    assert wide == (*(f"block3.layer.{i}.relu{j}" for i in range(5) for j in (1, 2)), "avgpool")
    assert len(wide) == 11


def test_the_same_rule_aligns_all_batch_norms_of_bottlenecks():
    with torch.device("meta"):
        deep, large = build_model("resnet50", 10), build_model("resnet18-imagenet", 10)
    assert deep.aligned_layers == tuple(f"layer4.{j}.bn{k}" for j in (0, 1, 2) for k in (1, 2, 3))
    assert large.aligned_layers == ("layer4.0.bn1", "layer4.0.bn2", "layer4.1.bn1", "layer4.1.bn2")
    assert deep.pooled_layer == large.pooled_layer == "layer4"


@pytest.mark.parametrize(("name", "channels"), [("resnet50", (256, 512, 1024, 2048)), ("resnet18-imagenet", None)])
def test_nets_for_large_images_halve_their_sides_five_times(name, channels):
    shapes = {}
    with torch.device("meta"):
        model = build_plain_model(name, 10)
        for layer in ("conv1", "pool", "layer1", "layer2", "layer3", "layer4"):
            listen = lambda module, args, out, layer=layer: shapes.update({layer: tuple(out.shape[1:])})  # noqa: E731
            model.get_submodule(layer).register_forward_hook(listen)
        model(torch.empty(1, 3, 224, 224))
    widths = channels or (64, 128, 256, 512)
    stages = {f"layer{i + 1}": (width, 56 >> i, 56 >> i) for i, width in enumerate(widths)}
    assert shapes == {"conv1": (64, 112, 112), "pool": (64, 56, 56), **stages}


def test_a_bottleneck_strides_in_its_3x3_convolution():
    with torch.device("meta"):
        block = build_plain_model("resnet50", 10).get_submodule("layer2.0")
    assert [block.get_submodule(f"conv{k}").stride for k in (1, 2, 3)] == [(1, 1), (2, 2), (1, 1)]
    assert block.shortcut.stride == (2, 2) and block.conv2.kernel_size == (3, 3)


def test_a_wide_net_has_the_depth_and_width_of_its_name():
    model = build_plain_model("wrn-16-2", 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    # A stem, and two convolutions in each of two blocks of three stages.
    assert len(convolutions) == 1 + 3 * 2 * 2
    assert [len(stage.layer) for stage in (model.block1, model.block2, model.block3)] == [2, 2, 2]
    assert model.fc.in_features == 64 * 2


@pytest.mark.parametrize("name", ["wrn-12-2", "wrn-4-2", "wrn-16-0"])
def test_a_depth_or_width_that_cannot_be_says_what_fits(name):
    with pytest.raises(UserError, match="6n \\+ 4"):
        build_model(name, 10)
    assert len(ModelConfig(name).problems()) == 1


def test_an_unknown_net_is_answered_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        build_model("resnet-18", 10)


def test_nets_are_built_in_eval_mode_with_default_statistics():
    model = build_model("tiny", 10)
    assert not any(module.training for module in model.modules())
    for layer in model.modules():
        if isinstance(layer, SplitBatchNorm2d):
            assert layer.running_mean.eq(0).all() and layer.running_var.eq(1).all()
