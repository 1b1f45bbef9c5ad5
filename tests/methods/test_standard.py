"""Standard training is the cross-entropy on clean images."""

import pytest

from fastarat.config.method import ATConfig, StandardConfig
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
@pytest.mark.parametrize(("settings", "half"), [(StandardConfig, 0), (ATConfig, 1)])
def test_the_loss_is_the_smoothed_cross_entropy_of_one_half(small_net, settings, half, smoothing):
    net, method = net_and_method(settings(label_smoothing=smoothing), small_net)
    both = images()
    expected, after = cross_entropy(probabilities(net, both[half]), smoothing), statistics_after(net, [both[half]])
    loss, metrics = method.loss(net, *both, Y)
    assert_same_loss(method, net, loss, expected)
    assert_statistics(net, after)
    assert tuple(metrics) == method.metrics == ("loss", ("clean_accuracy", "adversarial_accuracy")[half])
