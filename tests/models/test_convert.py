"""Any net becomes a split net and a branch becomes an ordinary net again, with unchanged outputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastarat.common.errors import UserError
from fastarat.models.convert import convert_to_split_batch_norm, plain_branch
from fastarat.models.features import feature_widths, tap_layers
from fastarat.models.published_names import published_model, published_predictors, split_layers
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import (
    ForwardContext,
    SplitBatchNorm2d,
    forward,
    forward_context,
    forward_with_features,
)

# float64: the same arithmetic in another order, 1e-16 an operation.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def images(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 1, 6, 6, dtype=torch.float64)


def shake(model: nn.Module) -> None:
    """Give both branches statistics and parameters of their own."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SplitBatchNorm2d):
                for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    tensor.add_(torch.rand_like(tensor))


@pytest.mark.parametrize("kind", ["split", "shared", "mixed"])
def test_both_branches_of_a_converted_net_give_the_original_outputs(small_net, kind):
    x, converted = images(), convert_to_split_batch_norm(small_net, kind)
    assert isinstance(converted.bn, SplitBatchNorm2d) and isinstance(small_net.bn, nn.BatchNorm2d)
    for branch in ("clean", "adv", "both"):
        torch.testing.assert_close(forward(converted, x, branch, "eval"), small_net(x), **CLOSE)


def test_nets_of_nested_containers_convert():
    block = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, eps=0.1), nn.ReLU())
    net = nn.Sequential(block, nn.Flatten(), nn.Linear(48, 2)).double().eval()
    x = images()
    torch.testing.assert_close(forward(convert_to_split_batch_norm(net), x, "clean", "eval"), net(x), **CLOSE)


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_a_plain_branch_computes_what_that_branch_did(small_net, branch):
    converted = convert_to_split_batch_norm(small_net)
    shake(converted)
    plain, x = plain_branch(converted, branch), images()
    torch.testing.assert_close(plain(x), forward(converted, x, branch, "eval"), **CLOSE)
    assert forward_context(plain) is None and not plain.training
    assert {*plain.state_dict(), "bn.num_batches_tracked"} == set(small_net.state_dict())


def test_converting_and_taking_a_branch_gives_the_original_tensors_back(small_net):
    plain = plain_branch(convert_to_split_batch_norm(small_net)).state_dict()
    for name, tensor in small_net.state_dict().items():
        assert name == "bn.num_batches_tracked" or torch.equal(plain[name], tensor), name


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, track_running_stats=False)])
def test_a_batch_norm_with_nothing_to_split_is_refused_by_name(norm):
    with pytest.raises(UserError, match="'1' needs affine parameters, running statistics and a momentum"):
        convert_to_split_batch_norm(nn.Sequential(nn.Conv2d(1, 2, 3), norm))


OLD_NORMS = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")


@OLD_NORMS
@pytest.mark.parametrize(
    ("norm", "says"),
    [
        (lambda: nn.utils.weight_norm(nn.BatchNorm2d(2)), "'1' has a weight that is made of others, as by weight_norm"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(2)), "'1' has a weight that is made of others"),
        (nn.LazyBatchNorm2d, "before its lazy layers know their sizes: run it once before"),
    ],
    ids=["weight_norm", "parametrized", "lazy"],
)
def test_a_batch_norm_whose_weight_is_not_its_own_is_refused_by_name(norm, says):
    with pytest.raises(UserError, match=says):
        convert_to_split_batch_norm(nn.Sequential(nn.Conv2d(1, 2, 3), norm()))


def head(norm: nn.Module) -> nn.Module:
    """A net for `images`, with a batch-norm of 16 features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), norm, nn.Linear(16, 4)).double()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(16), nn.SyncBatchNorm(16)], ids=["BatchNorm1d", "SyncBatchNorm"])
def test_a_batch_norm_of_features_goes_there_and_back(norm):
    net, x = head(norm).eval(), images()
    split = convert_to_split_batch_norm(net)
    torch.testing.assert_close(forward(split, x), net(x), **CLOSE)
    torch.testing.assert_close(plain_branch(split)(x), net(x), **CLOSE)


def test_what_is_hooked_on_a_batch_norm_is_kept_there_and_back(small_net):
    seen = []
    small_net.bn.register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    small_net.bn.register_forward_hook(lambda layer, args, out: 2 * out)
    small_net.bn.register_forward_hook(lambda layer, args, kwargs, out: seen.append(kwargs), with_kwargs=True)
    small_net.bn.register_full_backward_hook(lambda layer, of_inputs, of_outputs: seen.append(of_outputs))
    x, split = images(), convert_to_split_batch_norm(small_net)
    for net in (lambda x: forward(split, x), plain_branch(split)):
        torch.testing.assert_close(net(x), small_net(x), **CLOSE)
        del seen[:]
        net(x.requires_grad_()).sum().backward()
        assert len(seen) == 2 and seen[0] == {}


NORMS = nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm
NORMS = *NORMS, nn.utils.parametrizations.spectral_norm


@OLD_NORMS
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: f"{norm.__module__}.{norm.__name__}")
def test_weights_that_are_made_of_others_stay_so_in_every_copy(norm):
    layers = norm(nn.Conv2d(1, 4, 3)), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 4)
    net, x = nn.Sequential(*layers).double(), images()
    net(x)
    net.eval()
    split = convert_to_split_batch_norm(net)
    torch.testing.assert_close(forward(split, x), net(x), **CLOSE)
    plain = plain_branch(split)
    torch.testing.assert_close(plain(x), net(x), **CLOSE)
    before = plain(x).detach()
    with torch.no_grad():
        for name, parameter in plain[0].named_parameters():
            parameter.add_(torch.rand_like(parameter) * (name != "bias"))
    assert not torch.allclose(plain(x), before), "the copy's own parameters make its weight"
    torch.testing.assert_close(forward(split, x), net(x), **CLOSE)


def test_a_net_that_cannot_be_copied_is_one_line(small_net):
    small_net.generator = (i for i in range(3))
    with pytest.raises(UserError, match=r"the net cannot be copied .*cannot pickle 'generator' object"):
        convert_to_split_batch_norm(small_net)


def test_any_module_can_be_tapped_by_name(small_net):
    net = convert_to_split_batch_norm(small_net)
    names, x = list(net.state_dict()), images()
    before = forward(net, x, "adv", "eval")
    tap_layers(net, ("bn", "act", "conv", "linear"))
    logits, features = forward_with_features(net, x, "adv", "eval")
    assert list(net.state_dict()) == names
    torch.testing.assert_close(logits, before, rtol=0, atol=0)
    normalised = small_net.bn(small_net.conv(x))
    torch.testing.assert_close(features["bn"], F.relu(normalised).mean((2, 3)), **CLOSE)
    torch.testing.assert_close(features["act"], features["bn"], **CLOSE)
    torch.testing.assert_close(features["conv"], F.relu(small_net.conv(x)).mean((2, 3)), **CLOSE)
    torch.testing.assert_close(features["linear"], F.relu(logits), **CLOSE)


def test_features_are_recorded_only_when_asked_for(small_net):
    net = convert_to_split_batch_norm(small_net)
    tap_layers(net, ("bn", "act"))
    forward_with_features(net, images(), "adv", "eval")
    forward(net, images(), "adv", "eval")
    assert forward_context(net).features == {}


def test_a_branch_taken_out_of_a_tapped_net_records_nothing(small_net):
    net = convert_to_split_batch_norm(small_net)
    tap_layers(net, ("act",))
    forward_with_features(net, images(), "adv", "eval")
    plain = plain_branch(net)
    plain(images())
    assert not any(module.tap_context.features for module in plain.modules() if hasattr(module, "tap_context"))


def test_two_names_of_one_layer_are_both_recorded():
    model = build_model("wrn-10-1", 10)
    tap_layers(model, ("bn1", "avgpool"))
    assert feature_widths(model, (3, 8, 8), ("bn1", "avgpool")) == {"bn1": 64, "avgpool": 64}


def test_an_unknown_layer_is_named_with_the_layers_there_are():
    model = build_model("tiny", 10)
    with pytest.raises(UserError, match=r"unknown layer 'layer9'.*layer3\.0\.bn1, layer3\.0\.bn2"):
        tap_layers(model, ("layer9",))


@pytest.mark.parametrize(("name", "widths"), [("tiny", [64, 64]), ("wrn-10-1", [32, 64, 64])])
def test_feature_widths_are_found_by_one_forward(name, widths):
    model = build_model(name, 10)
    tap_layers(model, model.aligned_layers)
    before = copy.deepcopy(model.state_dict())
    found = feature_widths(model, (3, 8, 8), model.aligned_layers)
    assert found == dict(zip(model.aligned_layers, widths, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_wide_nets_published_layer_names_mean_its_activations():
    model = build_model("wrn-10-1", 10).double()
    shake(model)
    tap_layers(model, model.aligned_layers)
    seen = {}
    for name in ("block3.layer.0.bn1", "block3.layer.0.bn2", "bn1"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out}))
    _, features = forward_with_features(model, torch.rand(2, 3, 8, 8).double(), "adv", "eval")
    for published, ours in (("block3.layer.0.relu1", "block3.layer.0.bn1"), ("avgpool", "bn1")):
        torch.testing.assert_close(features[published], seen[ours].mean((2, 3)), **CLOSE)


def test_published_names_are_views_of_our_tensors_and_round_trip():
    model = build_model("tiny", 10)
    layers = split_layers(model)
    ours = model.state_dict()
    published = published_model(ours, layers)
    assert published["layer1.0.bn1.clean.weight"].shape == (16,)
    assert "layer1.0.shortcut_bn.adv.running_var" in published and "linear.weight" in published
    assert sum(t.numel() for t in published.values()) == sum(t.numel() for t in ours.values())
    for name, tensor in published.items():
        tensor.fill_(hash(name) % 1000)
    for name, tensor in model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        names = [f"{layer}.clean.{leaf}", f"{layer}.adv.{leaf}"] if layer in layers else [name]
        parts = tensor if layer in layers else tensor[None]
        for part, published_name in zip(parts, names, strict=True):
            assert part.eq(hash(published_name) % 1000).all()


def test_a_shared_net_has_the_published_names_of_an_ordinary_one():
    model = build_model("tiny", 10, batch_norm="shared")
    assert split_layers(model) == set()
    assert set(published_model(model.state_dict(), set())) == set(model.state_dict())


def test_predictors_are_published_under_their_layers_name():
    tensors = {"predictors.1.0.weight": torch.ones(1), "clean_accuracy": torch.zeros(())}
    assert list(published_predictors(tensors, ("layer4.0.bn1", "layer4.0.bn2"))) == ["predictor.layer4.0.bn2.0.weight"]


def test_a_copied_net_has_one_pass_of_its_own():
    model = build_model("tiny", 10)
    twin = copy.deepcopy(model)
    passes = {id(layer.context) for layer in twin.modules() if isinstance(layer, SplitBatchNorm2d)}
    assert passes == {id(forward_context(twin))}
    assert isinstance(forward_context(twin), ForwardContext) and forward_context(twin) is not forward_context(model)
