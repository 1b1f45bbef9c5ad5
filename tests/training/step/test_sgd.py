"""SGD as a function is torch's SGD."""

import pytest
import torch

from fastarat.training.step.sgd import sgd_

SHAPES = [(3, 4), (4,), ()]


def random_tensors() -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 5e-4), (0.0, 0.0), (0.9, 0.0), (0.0, 0.1)])
@pytest.mark.parametrize("keep", [None, 1.0])
def test_several_steps_are_those_of_torch(momentum, weight_decay, keep):
    ours = random_tensors()
    theirs = [tensor.clone().requires_grad_() for tensor in ours]
    momenta = [torch.zeros_like(tensor) for tensor in ours]
    optimizer = torch.optim.SGD(theirs, lr=1.0, momentum=momentum, weight_decay=weight_decay)
    for rate in (0.1, 0.1, 0.02, 0.5):
        gradients = random_tensors()
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        flag = None if keep is None else torch.tensor(keep, dtype=torch.float64)
        learning_rate = torch.tensor(rate, dtype=torch.float64)
        sgd_(ours, gradients, momenta, learning_rate, momentum, weight_decay, flag)
    for mine, their in zip(ours, theirs, strict=True):
        # Four steps of a few float64 operations.
        torch.testing.assert_close(mine, their.detach(), rtol=1e-13, atol=1e-14)


def test_the_gradients_given_are_left_as_they_are():
    gradients = random_tensors()
    before = [tensor.clone() for tensor in gradients]
    sgd_(random_tensors(), gradients, random_tensors(), torch.tensor(0.1), 0.9, 5e-4, torch.tensor(1.0))
    assert all(torch.equal(now, was) for now, was in zip(gradients, before, strict=True))


def test_parameters_that_ask_for_gradients_are_updated_in_place():
    parameter = torch.ones(2, requires_grad=True)
    sgd_([parameter], [torch.ones(2)], [torch.zeros(2)], torch.tensor(0.25), 0.0, 0.0)
    assert parameter.tolist() == [0.75, 0.75] and parameter.is_leaf and parameter.requires_grad
