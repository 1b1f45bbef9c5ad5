"""TRADES's loss against its formula written out in plain torch."""

import pytest

from fastarat.config.method import TRADESConfig
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
    net, method = net_and_method(TRADESConfig(beta=2.5, label_smoothing=smoothing), small_net)
    x, x_adv = images()
    p, q = probabilities(net, x), probabilities(net, x_adv)
    expected = cross_entropy(p, smoothing) + 2.5 * (p * (p / q).log()).sum(1).mean()
    loss, metrics = method.loss(net, x, x_adv, Y)
    assert_same_loss(method, net, loss, expected)
    assert tuple(metrics) == method.metrics
    assert float(metrics["clean_cross_entropy"]) == pytest.approx(float(cross_entropy(p, smoothing).detach()))
    assert float(metrics["divergence"]) == pytest.approx(float((p * (p / q).log()).sum(1).mean().detach()))
    assert float(metrics["clean_accuracy"]) == float((p.argmax(1) == Y).double().mean())
    assert float(metrics["adversarial_accuracy"]) == float((q.argmax(1) == Y).double().mean())


def test_the_clean_half_moves_the_running_statistics_first(small_net):
    net, method = net_and_method(TRADESConfig(), small_net)
    x, x_adv = images()
    expected = statistics_after(net, [x, x_adv])
    method.loss(net, x, x_adv, Y)
    assert_statistics(net, expected)


def test_the_paper_weighs_the_divergence_by_6():
    assert TRADESConfig().beta == 6
