"""Muon: its matrices are those that the iteration's polynomial gives by an SVD, its updates those of torch's Muon."""

import pytest
import torch

from fastarat.training.step.muon import COEFFICIENTS, ITERATIONS, muon_, orthogonal

SHAPES = [(16, 3, 3, 3), (16, 16, 3, 3), (32, 16, 1, 1), (16, 16, 1, 1), (64, 8, 1, 1)]


def tensors(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last) for shape in SHAPES]


def by_svd(matrix: torch.Tensor) -> torch.Tensor:
    """The polynomial on the singular values, one by one."""
    u, values, v = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    return u @ values.diag() @ v


def test_matrices_of_many_shapes_are_those_of_their_singular_values():
    matrices = [tensor.flatten(1) for tensor in tensors()]
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        # float64: five iterations of three products, whose errors the polynomial's slope of 3.4 multiplies each time.
        torch.testing.assert_close(found, by_svd(matrix), rtol=1e-9, atol=1e-10)
        assert torch.linalg.svdvals(found).min() > 0.6 and torch.linalg.svdvals(found).max() < 1.3


@pytest.mark.parametrize("keep", [None, 1.0])
def test_several_steps_are_those_of_the_rule(keep):
    ours, momenta = tensors(), [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    theirs, their_momenta = [tensor.clone() for tensor in ours], [tensor.clone() for tensor in momenta]
    flag = None if keep is None else torch.tensor(keep, dtype=torch.float64)
    for rate in (0.02, 0.05):
        gradients = tensors()
        muon_(ours, gradients, momenta, torch.tensor(rate, dtype=torch.float64), 0.9, 0.1, flag)
        for parameter, gradient, momentum in zip(theirs, gradients, their_momenta, strict=True):
            momentum.mul_(0.9).add_(gradient)
            matrix = by_svd((gradient + 0.9 * momentum).flatten(1))
            size = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
            parameter.copy_(parameter - rate * (size * matrix.view_as(parameter) + 0.1 * parameter))
    for mine, their in zip([*ours, *momenta], [*theirs, *their_momenta], strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-9, atol=1e-10)  # as above


def test_a_gradient_of_zeros_has_no_direction():
    assert not orthogonal([torch.zeros(4, 6)])[0].any()


@pytest.mark.parametrize("keep", [None, 1.0])
def test_several_steps_are_those_of_torch(keep):
    ours = tensors(torch.float32)
    theirs = [tensor.flatten(1).clone().requires_grad_() for tensor in ours]
    momenta = [torch.zeros_like(tensor) for tensor in ours]
    optimizer = torch.optim.Muon(theirs, lr=1.0, momentum=0.9, weight_decay=0.1)
    moved = [torch.zeros_like(tensor) for tensor in ours]
    for rate in (0.02, 0.05):
        gradients = tensors(torch.float32)
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = gradient.flatten(1).clone()
        before = [tensor.detach().clone() for tensor in theirs]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        flag = None if keep is None else torch.tensor(keep)
        with torch.autocast("cpu", torch.bfloat16):
            muon_(ours, gradients, momenta, torch.tensor(rate), 0.9, 0.1, flag)
        moved = [m + (t.detach() - b).view_as(m).abs() for m, t, b in zip(moved, theirs, before, strict=True)]
    for mine, their, distance in zip(ours, theirs, moved, strict=True):
        # torch's products are in bfloat16 too, whose 2^-9 the five iterations multiply by up to 3.4 each; it rounds the
        # momentum to bfloat16 before them as well.
        error = (mine.flatten(1) - their.detach()).norm() / distance.norm()
        assert error < 0.03
