"""The threat models: projections, ascent steps and random points of the Linf and L2 balls."""

import math

import pytest
import torch
from fastarat_kernels.pgd_step.ball import ascend, norms, project, uniform_noise

DTYPES = (torch.float32, torch.float64)
ROWS = torch.arange(50)


def inside(x: torch.Tensor, centre: torch.Tensor, eps: float, norm: str) -> bool:
    """Whether `x` lies in the ball, to a few roundings of its pixels (and, L2, of its norm)."""
    shift, rounding = x - centre, 4 * torch.finfo(x.dtype).eps
    length = shift.abs().max() if norm == "linf" else norms(shift).max()
    return bool(length <= eps + rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_projected_point_is_inside_the_ball_and_the_pixel_range(norm, dtype):
    centre = torch.rand(50, 3, 4, 4, dtype=dtype)
    x = project(centre + torch.randn_like(centre), centre, 0.3, norm)
    assert x.dtype == dtype and x.min() >= 0 and x.max() <= 1
    assert inside(x, centre, 0.3, norm)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_point_inside_stays_where_it_is(norm):
    centre = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64)
    x = centre + 0.1 * torch.rand_like(centre)
    # The L2 shift is multiplied by 1 after a subtraction and an addition: two roundings.
    torch.testing.assert_close(project(x, centre, 0.2, norm), x, rtol=0, atol=1e-15)


def test_linf_projects_each_pixel_by_itself():
    centre = torch.tensor([0.5, 0.5, 0.05, 0.95], dtype=torch.float64).view(1, 1, 2, 2)
    x = torch.tensor([0.9, 0.55, -0.3, 1.3], dtype=torch.float64).view(1, 1, 2, 2)
    expected = torch.tensor([0.6, 0.55, 0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
    torch.testing.assert_close(project(x, centre, 0.1, "linf"), expected, rtol=0, atol=1e-15)


def test_l2_projects_along_the_radius():
    centre = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    x = centre + torch.tensor([0.3, 0.4], dtype=torch.float64)
    expected = centre + torch.tensor([0.06, 0.08], dtype=torch.float64)
    torch.testing.assert_close(project(x, centre, 0.1, "l2"), expected, rtol=0, atol=1e-15)


def test_ascent_moves_by_the_sign_or_along_the_unit_gradient():
    x = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    gradient = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64).view(1, 1, 1, 3)
    assert ascend(x, gradient, 0.5, "linf").flatten().tolist() == [0.5, -0.5, 0.0]
    # The unit gradient is g / (|g| + 1e-12).
    expected = torch.tensor([0.3, -0.4, 0.0], dtype=torch.float64)
    torch.testing.assert_close(ascend(x, gradient, 0.5, "l2").flatten(), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_of_zero_moves_nothing(norm):
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(ascend(x, torch.zeros_like(x), 0.5, norm), x)


@pytest.mark.parametrize("scale", [1e-8, 1e-14])
def test_an_l2_step_has_its_full_length_however_small_the_gradient(scale):
    x = torch.zeros(1, 1, 2, 2)
    moved = ascend(x, torch.full_like(x, scale), 0.5, "l2")
    # float32 keeps seven digits; the guard against division by zero may cost one per mille.
    assert float(norms(moved)) == pytest.approx(0.5, rel=1e-3)


def test_linf_noise_is_uniform_in_the_cube():
    noise = uniform_noise(torch.Size((50, 3, 20, 20)), 0.1, "linf", 0, 0, ROWS).double()
    n = noise.numel()
    assert noise.abs().max() <= 0.1
    # Five standard deviations of the mean, and of the mean square (of u² with u uniform in [-1, 1]: 4/45).
    assert abs(noise.mean() / 0.1) < 5 * math.sqrt(1 / 3 / n)
    assert abs((noise / 0.1).square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)


def test_l2_noise_is_uniform_in_the_ball():
    n, d = 20_000, 3
    noise = uniform_noise(torch.Size((n, d, 1, 1)), 0.5, "l2", 0, 0, torch.arange(n)).double()
    radius = norms(noise).flatten() / 0.5
    # A float32 norm may round above 1.
    assert radius.max() <= 1 + 1e-6
    # (radius / eps)^d is uniform: Kolmogorov and Smirnov's distance is below 1.95 / sqrt(n) in all but 0.1 %.
    volume = (radius**d).sort().values
    assert (volume - torch.arange(1, n + 1) / n).abs().max() < 1.95 / math.sqrt(n)
    # No direction is preferred: a coordinate's mean square is 1/5 of eps² in three dimensions.
    squares = (noise.flatten(1) / 0.5).square().mean(0)
    assert (squares - 1 / 5).abs().max() < 5 * math.sqrt((3 / 35 - 1 / 25) / n)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_depends_on_seed_step_and_row_alone(norm):
    def draw(seed=1, step=2, rows=ROWS):
        return uniform_noise(torch.Size((len(rows), 3, 4, 4)), 0.1, norm, seed, step, rows)

    whole = draw()
    assert torch.equal(torch.cat([draw(rows=ROWS[:20]), draw(rows=ROWS[20:])]), whole)
    assert torch.equal(draw(step=torch.tensor(2)), whole)
    for other in (draw(seed=2), draw(step=3), draw(rows=ROWS + 50)):
        assert not (other == whole).any()
