"""A projection is the shortest shift to the plane that stays in [0, 1], or the corner next to a plane out of reach."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastarat.attacks import projections
from fastarat.attacks.projections import lengths, project_onto_plane
from fastarat.config.attack import Norm

NORMS: tuple[Norm, ...] = ("linf", "l2")


@pytest.fixture
def vectors(golden) -> dict[str, Tensor]:
    """The standard's projections: `points`, `w`, `b`, `linf_delta`, `l2_delta`."""
    with np.load(golden / "autoattack" / "unit_vectors.npz", allow_pickle=False) as file:
        return {k.removeprefix("proj_"): torch.from_numpy(file[k]) for k in file.files if k.startswith("proj_")}


def corner(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Where each pixel ends that moves towards the plane until it stands at its wall."""
    height = (w * points).sum(1, keepdim=True) - b[:, None]
    return torch.where(w * height > 0, 0.0, torch.where(w * height < 0, 1.0, points))


def shortest_length(points: Tensor, w: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """By bisection: the least radius whose best point is beyond the plane (which the corner must be)."""
    height, far = (w * points).sum(1) - b, corner(points, w, b) - points
    low, high = torch.zeros(len(points), 1, dtype=w.dtype), torch.full((len(points), 1), 1e6, dtype=w.dtype)

    def after(time: Tensor) -> Tensor:
        return far.sign() * torch.minimum(far.abs(), time if norm == "linf" else time * w.abs())

    for _ in range(200):
        time = (low + high) / 2
        beyond = ((w * after(time)).sum(1).abs() >= height.abs())[:, None]
        low, high = torch.where(beyond, low, time), torch.where(beyond, time, high)
    return lengths(after(high), norm)[:, 0]


def planes(reach: float, num: int = 20, size: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Points, some of whose pixels stand at a wall, and planes that need `reach` of the way to the corner."""
    points = (1.4 * torch.rand(num, size, dtype=torch.float64) - 0.2).clamp(0, 1)
    w = torch.randn_like(points) ** 3
    w[:, :20] = 0
    towards_zero = torch.where(w > 0, points, 1 - points)
    return points, w, (w * points).sum(1) - reach * (w.abs() * towards_zero).sum(1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_standard_finds_shifts_of_the_same_length(vectors, norm):
    points, w, b, expected = vectors["points"], vectors["w"], vectors["b"], vectors[f"{norm}_delta"]
    shift = project_onto_plane(points, w, b, norm)
    q = points + shift
    height, farthest = ((w * points).sum(1) - b).abs(), (w * (corner(points, w, b) - points)).sum(1).abs()
    reachable = height <= farthest
    assert 0 < reachable.sum() < len(points)
    assert q.min() >= 0 and q.max() <= 1
    assert ((w * q).sum(1) - b)[reachable].abs().max() < 3.3e-6
    torch.testing.assert_close(lengths(shift, norm), lengths(expected, norm), rtol=0, atol=1e-4)
    torch.testing.assert_close(q[~reachable], corner(points, w, b)[~reachable], rtol=0, atol=1e-6)


@pytest.mark.parametrize("reach", [1e-4, 0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("norm", NORMS)
def test_the_shift_ends_on_the_plane_and_none_is_shorter(norm, reach):
    points, w, b = planes(reach)
    shift = project_onto_plane(points, w, b, norm)
    assert (points + shift).min() >= 0 and (points + shift).max() <= 1
    # What sixteen rounds may leave of the worst case, half of which goes with each.
    torch.testing.assert_close((w * (points + shift)).sum(1), b, rtol=0, atol=1e-5 * float(w.abs().sum(1).max()))
    torch.testing.assert_close(lengths(shift, norm)[:, 0], shortest_length(points, w, b, norm), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_the_plane_is_reached_from_either_side(norm):
    points, w, b = planes(0.3)
    ahead = project_onto_plane(points, w, b, norm)
    assert torch.equal(project_onto_plane(points, -w, -b, norm), ahead)
    mirrored = project_onto_plane(1 - points, -w, b - w.sum(1), norm)
    torch.testing.assert_close(mirrored, -ahead, rtol=0, atol=1e-12)


def test_pixels_that_meet_their_wall_leave_the_rest_of_the_way_to_the_others():
    point, w = torch.tensor([[0.1, 0.9]], dtype=torch.float64), torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    # Height 1.1 - 0.6: the first pixel gives 2 * 0.1 and stands, the other gives the 0.3 that are left.
    for norm in NORMS:
        shift = project_onto_plane(point, w, torch.tensor([0.6], dtype=torch.float64), norm)
        torch.testing.assert_close(shift, torch.tensor([[-0.1, -0.3]], dtype=torch.float64))
    # Height 0.1, no wall met: the same way for both pixels, or ways as their weights.
    b = torch.tensor([1.0], dtype=torch.float64)
    near: dict[Norm, list] = {"linf": [[-0.1 / 3, -0.1 / 3]], "l2": [[-0.04, -0.02]]}
    for norm, expected in near.items():
        torch.testing.assert_close(project_onto_plane(point, w, b, norm), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("reach", [1 + 1e-12, 1.2])
@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_out_of_reach_is_neared_as_far_as_the_corner(norm, reach):
    points, w, b = planes(reach)
    shift = project_onto_plane(points, w, b, norm)
    torch.testing.assert_close(points + shift, corner(points, w, b), rtol=0, atol=1e-15)
    assert not shift[:, :20].any()


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_through_the_corner_is_reached_to_rounding(norm):
    points, w, b = (t.float() for t in planes(1.0, num=2000, size=30))
    shift = project_onto_plane(points, w, b, norm)
    left = ((w * (points + shift)).sum(1) - b).abs()
    assert (left <= 1e-4 * ((w * points).sum(1) - b).abs()).all()


@pytest.mark.parametrize("b", [0.0, 3.0])
@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_without_a_direction_moves_nothing(norm, b):
    points = torch.rand(4, 6)
    shift = project_onto_plane(points, torch.zeros(4, 6), torch.full((4,), b), norm)
    assert torch.equal(points + shift, points)


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_on_its_plane_stays(norm):
    points, w = torch.full((1, 4), 0.5), torch.tensor([[1.0, -1.0, 2.0, -2.0]])
    assert not project_onto_plane(points, w, torch.zeros(1), norm).any()


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
@pytest.mark.parametrize("norm", NORMS)
def test_the_size_of_the_weights_does_not_matter(norm, scale):
    points, w, b = (t.float() for t in planes(0.3))
    scaled = project_onto_plane(points, scale * w, scale * b, norm)
    torch.testing.assert_close(scaled, project_onto_plane(points, w, b, norm), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_images_are_projected_each_by_itself_and_left_as_they_are(norm):
    points, w, b = planes(0.3)
    images, weights, before = points.view(20, 3, 10, 10), w.view(20, 3, 10, 10), points.clone()
    whole = project_onto_plane(images, weights, b, norm)
    assert whole.shape == images.shape and whole.dtype == torch.float64
    each = [project_onto_plane(images[i : i + 1], weights[i : i + 1], b[i : i + 1], norm) for i in range(20)]
    torch.testing.assert_close(whole, torch.cat(each), rtol=0, atol=1e-12)
    assert torch.equal(points, before)


@pytest.mark.parametrize("norm", NORMS)
def test_rounds_after_the_last_that_matters_change_nothing(norm, monkeypatch):
    points, w, b = planes(0.3)
    expected = project_onto_plane(points, w, b, norm)
    monkeypatch.setattr(projections, "_settled", lambda later, time: False)
    assert torch.equal(project_onto_plane(points, w, b, norm), expected)
    monkeypatch.setattr(projections, "ROUNDS", 6)
    assert torch.equal(project_onto_plane(points, w, b, norm), expected)


def test_lengths_are_an_image_each():
    shift = torch.tensor([[3.0, -4.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    assert lengths(shift, "linf").shape == (2, 1, 1, 1)
    assert lengths(shift, "linf").flatten().tolist() == [4.0, 1.0]
    assert lengths(shift, "l2").flatten().tolist() == [5.0, 1.0]
