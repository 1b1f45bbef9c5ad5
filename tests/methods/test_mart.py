"""MART's loss against its formula written out in plain torch."""

import pytest
import torch

from fastarat.config.method import MARTConfig
from fastarat.methods.mart import wrong_class_penalty
from tests.helpers.by_hand import (
    Y,
    assert_same_loss,
    assert_statistics,
    cross_entropy,
    images,
    net_and_method,
    probabilities,
    statistics_after,
)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_and_all_its_gradients_are_those_of_the_formula(small_net, smoothing):
    net, method = net_and_method(MARTConfig(beta=2.5, label_smoothing=smoothing), small_net)
    x, x_adv = images()
    p, q = probabilities(net, x), probabilities(net, x_adv)
    # Of three classes, the likeliest that is not the label: the label of row 0 is 2, of row 1 is 0.
    wrong = torch.stack([torch.maximum(q[0, 0], q[0, 1]), torch.maximum(q[1, 1], q[1, 2])])
    true = torch.stack([p[0, 2], p[1, 0]])
    expected = cross_entropy(q, smoothing) - (1.0001 - wrong + 1e-12).log().mean()
    expected = expected + 2.5 * ((p * (p / q).log()).sum(1) * (1.0000001 - true)).mean()
    loss, metrics = method.loss(net, x, x_adv, Y)
    assert_same_loss(method, net, loss, expected)
    assert tuple(metrics) == method.metrics


def test_a_net_that_is_sure_of_a_wrong_class_has_a_large_penalty_and_a_finite_gradient():
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    sure_and_wrong, sure_and_right = (wrong_class_penalty(logits, torch.tensor([y]))[0] for y in (1, 0))
    assert float(sure_and_wrong.detach()) == pytest.approx(9.21, abs=0.01)  # -log(0.0001)
    assert float(sure_and_right.detach()) == pytest.approx(-1e-4, rel=0.01)
    (gradient,) = torch.autograd.grad(sure_and_wrong, logits)
    assert gradient.isfinite().all()


def test_the_clean_half_moves_the_running_statistics_first(small_net):
    net, method = net_and_method(MARTConfig(), small_net)
    x, x_adv = images()
    expected = statistics_after(net, [x, x_adv])
    method.loss(net, x, x_adv, Y)
    assert_statistics(net, expected)
