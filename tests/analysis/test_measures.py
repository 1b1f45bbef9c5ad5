"""Each measure of an analysis against a hand computation, and what it must say of the clearest cases."""

import numpy as np
import pytest
import torch
from torch import nn

from fastarat.analysis.conflict import conflict, naive_invariance
from fastarat.analysis.features import similarity, spread
from fastarat.analysis.layers import mean_over, observe, parameter_groups
from fastarat.analysis.mixture import distance, distances
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import forward

X = np.array([[1.0, 2.0], [-1.0, 0.5]])
W1, W2 = np.array([[0.5, -1.0], [2.0, 1.0]]), np.array([[1.0, -0.5]])


def two_layers() -> nn.Sequential:
    """y = W2 W1 x, in float64."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        for layer, weight in zip(net, (W1, W2), strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
    return net


def two_losses(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of y and of y^2 over the two images."""
    y = net(torch.from_numpy(X))
    return y.sum(), y.square().sum()


def by_hand(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of a sum of y over images, each with a weight, by W1 and by W2."""
    first = sum(w * W2.T @ x[None] for w, x in zip(weights, X, strict=True))
    return first, sum(w * (W1 @ x)[None] for w, x in zip(weights, X, strict=True))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def test_conflict_is_the_cosine_of_the_two_gradients_of_each_layer():
    net = two_layers()
    found = conflict(*two_losses(net), parameter_groups(net))
    outputs = (W2 @ W1 @ X.T)[0]
    expected = [cosine(a, b) for a, b in zip(by_hand(np.ones(2)), by_hand(2 * outputs), strict=True)]
    assert list(found.values()) == pytest.approx(expected, rel=1e-12)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_loss_agrees_with_itself_and_conflicts_with_its_negative():
    net = two_layers()
    loss, other = two_losses(net)
    groups = parameter_groups(net)
    assert list(conflict(other, 3 * other, groups).values()) == pytest.approx([1, 1])
    assert list(conflict(loss, -loss, groups).values()) == pytest.approx([-1, -1])


def test_a_loss_that_does_not_reach_a_layer_has_no_conflict_there():
    net = two_layers()
    inner = net[0](torch.from_numpy(X)).sum()
    found = conflict(inner, two_losses(net)[1], parameter_groups(net))
    assert found["0"] is not None and found["1"] is None
    assert set(conflict(torch.tensor(1.0), inner, parameter_groups(net)).values()) == {None}


def test_naive_invariance_is_one_minus_the_cosine_of_both_halves_over_images_and_layers():
    features = {"a": torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 2]]), "b": torch.tensor([[1.0], [1], [-1], [2]])}
    expected = ((1 - 0.5**0.5) / 2 + 1) / 2
    assert float(naive_invariance(features, ("a", "b"))) == pytest.approx(expected)
    assert float(naive_invariance(features, ("b",))) == pytest.approx(1)


def test_distance_of_statistics_is_wassersteins_in_pooled_deviations():
    rng = np.random.default_rng(0)
    clean, moved = rng.normal(size=(2, 3, 4, 5)), 1 + 2 * rng.normal(size=(2, 3, 4, 5))
    expected = []
    for channel in range(3):
        a, b = clean[:, channel], moved[:, channel]
        apart = np.sqrt((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)
        expected.append(apart / np.sqrt((a.var() + b.var()) / 2 + 1e-3))
    found = distance(torch.from_numpy(clean), torch.from_numpy(moved), eps=1e-3)
    assert found == pytest.approx(np.mean(expected), rel=1e-12)


def test_equal_statistics_have_no_distance_even_where_a_channel_is_dead():
    x = torch.randn(4, 2, 3, 3).double()
    x[:, 1] = 0
    assert distance(x, x) == 0
    assert distance(x, x.flip(0)) == pytest.approx(0, abs=1e-12)


def test_distances_are_of_every_batch_norms_input_and_leave_no_hook():
    net = build_model("digits", 10, 1).double()
    x, x_adv = torch.rand(2, 1, 8, 8).double(), torch.rand(2, 1, 8, 8).double()
    with distances(net) as found:
        forward(net, torch.cat([x, x_adv]), "both", "frozen")
    assert len(found) == 6
    inputs = (net.conv1(half).detach() for half in (x, x_adv))
    assert found["bn1"] == pytest.approx(distance(*inputs), rel=1e-12)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_features_that_nothing_moves_are_alike():
    z = torch.randn(5, 7).double()
    assert similarity(z, z) == pytest.approx(1)
    assert similarity(z, -z) == pytest.approx(-1)
    assert similarity(torch.tensor([[3.0, 4]]), torch.tensor([[4.0, 3]])) == pytest.approx(0.96)


def test_spread_is_0_for_one_direction_and_1_for_all():
    one = torch.randn(1, 50).double()
    assert spread(one * torch.rand(20, 1).double()) == pytest.approx(0, abs=1e-9)
    assert spread(torch.randn(20_000, 50).double()) == pytest.approx(1, abs=0.01)
    assert spread(torch.zeros(4, 3)) == 0
    # Two images along two axes: each of both features is 1 or 0.
    assert spread(torch.tensor([[5.0, 0], [0, 2]])) == pytest.approx(0.5 * 2**0.5)


def test_every_batch_norm_is_observed_under_the_name_it_is_aligned_by():
    net = build_model("wrn-10-1", 10)
    aligned = net.aligned_layers
    layers = observe(net, aligned)
    assert set(aligned) <= set(layers) and "block1.layer.0.bn1" in layers and "bn1" not in layers
    assert len(layers) == 7 and observe(net, aligned) == layers
    assert all(len(set(module.taps)) == len(module.taps) for module in net.modules() if hasattr(module, "taps"))
    values = {"bn1": 1.0, "block3.layer.0.bn1": 3.0, "block1.layer.0.bn1": 100.0, "block3.layer.0.bn2": None}
    assert mean_over(values, net, aligned) == 2.0
    assert mean_over(values, net, ("block3",)) == 3.0
