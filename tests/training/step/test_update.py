"""An update: what it moves by which rule, and what it leaves alone."""

import pytest
import torch

from fastarat.config.training import OptimizerConfig
from fastarat.training.step.muon import muon_
from fastarat.training.step.sgd import sgd_
from fastarat.training.step.update import update_


@pytest.mark.parametrize("update", [sgd_, muon_])
def test_a_step_that_is_not_kept_changes_nothing(update):
    parameters, gradients, momenta = (
        [torch.randn(shape, dtype=torch.float64) for shape in [(4, 3, 3, 3), (5, 4, 1, 1)]] for _ in range(3)
    )
    before = [tensor.clone() for tensor in (*parameters, *momenta)]
    update(parameters, gradients, momenta, torch.tensor(0.1), 0.9, 5e-4, torch.tensor(0.0))
    assert all(torch.equal(now, was) for now, was in zip((*parameters, *momenta), before, strict=True))


def test_convolutions_go_by_muon_and_the_rest_by_sgd():
    shapes = [(4, 3, 3, 3), (4,), (5, 4), (6, 4, 1, 1)]
    start, gradients = ([torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(2))
    rate, settings = (
        torch.tensor(0.2, dtype=torch.float64),
        OptimizerConfig(name="muon", momentum=0.5, weight_decay=0.1),
    )
    found, expected = [tensor.clone() for tensor in start], [tensor.clone() for tensor in start]
    update_(settings, found, gradients, [torch.zeros_like(tensor) for tensor in start], rate)
    for update, places, factor in ((muon_, (0, 3), settings.muon_factor), (sgd_, (1, 2), 1)):
        own = [expected[i] for i in places]
        momenta = [torch.zeros_like(tensor) for tensor in own]
        update(own, [gradients[i] for i in places], momenta, rate * factor, 0.5, 0.1)
    # Both calls pad to the same widths, so the products are the same.
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found, start, strict=True))
