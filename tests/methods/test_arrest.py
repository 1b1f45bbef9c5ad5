"""ARREST's loss against its formula written out in plain torch, its replay, and its teacher."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fastarat_kernels import philox

from fastarat.common.distributed import World
from fastarat.common.errors import UserError
from fastarat.config.method import ARRESTConfig
from fastarat.config.recipes import recipe
from fastarat.data.open import open_dataset
from fastarat.methods.arrest import angle
from fastarat.methods.registry import build_method
from fastarat.models.convert import convert_to_split_batch_norm
from fastarat.models.registry import build_model, build_plain_model
from fastarat.models.split_batch_norm import forward
from fastarat.training.build import build_training
from tests.helpers.by_hand import (
    CLOSE,
    Y,
    assert_same_loss,
    assert_statistics,
    cross_entropy,
    features,
    images,
    net_and_method,
    probabilities,
    statistics_after,
)


def arrest(small_net, **settings):
    """A `SmallNet` and ARREST with it as the teacher; the net has moved on since."""
    net, method = net_and_method(ARRESTConfig(layer="act", weight=3.0, **settings), small_net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return net, method


def taught(teacher, x):
    """Pooled features of a `SmallNet` by its running statistics."""
    out = F.conv2d(x, teacher.conv.weight, padding=1)
    column = lambda v: v[0].view(1, -1, 1, 1)  # noqa: E731
    scaled = (out - column(teacher.bn.running_mean)) / (column(teacher.bn.running_var) + 1e-5).sqrt()
    return (scaled * column(teacher.bn.weight) + column(teacher.bn.bias)).clamp_min(0).mean((2, 3))


def angles(one, other):
    cosine = (one * other).sum(1) / (one.square().sum(1) * other.square().sum(1)).sqrt()
    return torch.arccos(cosine) / math.pi


def noisy(x, step, eps, seed=0, first=0):
    rows = first + torch.arange(len(x))
    u = philox.uniform(seed, philox.Stream.REPLAY, step, rows, (1, 5, 5)).double()
    return (x + eps * (2 * u - 1)).clamp(0, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("num_replayed", [0, 1, 2])
def test_the_loss_and_all_its_gradients_are_those_of_the_formula(small_net, num_replayed, smoothing):
    net, method = arrest(small_net, noise_255=51.0, label_smoothing=smoothing)
    x, x_adv = images()
    target = taught(method.teacher, x)
    drifted = angles(features(net, x_adv), target).detach().tolist()
    low, high = sorted(drifted)
    threshold = {0: high + 0.01, 1: (low + high) / 2, 2: low / 2}[num_replayed]
    method.settings = ARRESTConfig(
        layer="act", weight=3.0, threshold=threshold, noise_255=51.0, label_smoothing=smoothing
    )
    expected_inputs = x_adv.clone()
    for i, drift in enumerate(drifted):
        if drift > threshold:
            expected_inputs[i] = noisy(x, 0, 0.2)[i]
    p, after = probabilities(net, expected_inputs), statistics_after(net, [expected_inputs])
    distance = angles(features(net, expected_inputs), target)
    loss, metrics = method.loss(net, x, x_adv, Y)
    assert_same_loss(method, net, loss, cross_entropy(p, smoothing) + 3 * distance.mean())
    assert_statistics(net, after)  # moved once, by what the net was trained on
    assert tuple(metrics) == method.metrics and float(metrics["replayed"]) == num_replayed / 2


def test_every_step_has_noise_of_its_own_in_the_ball_and_the_pixel_range(small_net):
    _, method = arrest(small_net, noise_255=51.0)
    x = torch.rand(2, 1, 5, 5, dtype=torch.float64)
    first, second = method._noisy(x), method._noisy(x)
    torch.testing.assert_close(second, noisy(x, 1, 0.2), **CLOSE)
    assert not torch.equal(first, second) and int(method.num_steps) == 2
    for image in (first, second):
        assert (image - x).abs().max() <= 0.2 and image.min() >= 0 and image.max() <= 1


def test_noise_is_the_runs_own_and_the_same_for_any_number_of_processes():
    """Of the method as a training builds it; batches of 4 images."""

    def drawn(seed, rank, size):
        config = replace(recipe("digits-arrest"), seed=seed, batch=4, loader="resident")
        config = replace(config, method=replace(config.method, noise_255=51.0))
        world = World(torch.device("cpu"), rank, size)
        method = build_training(config, open_dataset("digits"), world).parts.method
        return method._noisy(x[rank * 4 // size : (rank + 1) * 4 // size])

    x = torch.rand(4, 1, 5, 5, dtype=torch.float64)
    whole = drawn(3, 0, 1)
    torch.testing.assert_close(whole, noisy(x, 0, 0.2, seed=3), **CLOSE)
    assert torch.equal(whole, torch.cat([drawn(3, 0, 2), drawn(3, 1, 2)]))
    assert not torch.equal(whole, drawn(4, 0, 1))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_representations_of_one_direction_have_a_finite_gradient(sign):
    features = torch.rand(2, 4, requires_grad=True)
    value = angle(features, sign * 2 * features.detach())
    (gradient,) = torch.autograd.grad(value.sum(), features)
    assert gradient.isfinite().all()
    torch.testing.assert_close(value.detach(), torch.full((2,), (1 - sign) / 2), rtol=0, atol=1e-3)


def test_the_teacher_stays_as_it_is_and_is_saved_with_the_method(small_net):
    net, method = arrest(small_net)
    before = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
    loss, _ = method.loss(net, *images(), Y)
    torch.autograd.grad(loss, list(net.parameters()))
    for name, tensor in method.teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(p.requires_grad for p in method.parameters())
    assert {f"teacher.{name}" for name in before} | {"num_steps"} == set(method.state_dict())


@pytest.mark.parametrize("name", ["digits", "wrn-10-1"])
def test_training_starts_from_the_teacher_whose_last_layers_input_is_the_representation(name):
    net, plain = build_model(name, 3, batch_norm="shared"), build_plain_model(name, 3)
    for layer in plain.modules():
        if hasattr(layer, "running_mean"):
            torch.nn.init.normal_(layer.running_mean)
    method = build_method(ARRESTConfig(), net, (3, 8, 8))
    method.begin_training(net, plain)
    x = torch.rand(4, 3, 8, 8)
    seen = []
    last = plain.fc if name.startswith("wrn") else plain.linear
    last.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    for trained in (net, method.teacher):
        torch.testing.assert_close(forward(trained, x), plain(x))
    _, representation = method._logits_and_features(method.teacher, x, "eval")
    torch.testing.assert_close(representation, seen[0])


def test_in_half_precision_the_forward_that_looks_for_drift_costs_no_weight_its_gradient():
    """Autocast keeps the weights that it has cast, for the forward that trains too."""
    net = build_model("digits", 3, batch_norm="shared")
    method = build_method(ARRESTConfig(), net, (3, 8, 8))
    x, x_adv = torch.rand(2, 4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method.loss(net, x, x_adv, torch.tensor([0, 1, 2, 0]))
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    assert loss.dtype == torch.float32 and all(gradient.any() for gradient in gradients)


def test_a_net_that_names_no_last_layer_asks_for_one(small_net):
    with pytest.raises(UserError, match="layer"):
        build_method(ARRESTConfig(), convert_to_split_batch_norm(small_net, "shared"), (1, 5, 5))
