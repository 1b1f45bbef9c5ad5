"""FAB finds the nearest misclassified point, as the standard does, and calls broken what lies in the ball."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastarat.attacks import fab as module
from fastarat.attacks import projections
from fastarat.attacks.attack import Found
from fastarat.attacks.fab import Search, advance
from fastarat.attacks.projections import lengths
from fastarat.common.errors import UserError
from fastarat.verification.stored_net import load_kit_model
from tests.helpers.attacks import by_keywords
from tests.helpers.host_syncs import HostSync, NoHostSync

fab = by_keywords(module.fab)


def fab_t(logits_of, x: Tensor, y: Tensor, **settings) -> Found:
    """The attack, which does not look at rows."""
    return by_keywords(module.fab_t)(logits_of, x, y, torch.arange(len(x)), **settings)


NAMES = {"linf": "Linf", "l2": "L2"}
EPS = {"linf": 0.18, "l2": 0.75}
NORMS = tuple(NAMES)


class Stored(NamedTuple):
    """A net with the standard's results on it."""

    model: nn.Module
    x: Tensor
    y: Tensor
    stored: dict[str, Tensor]


@pytest.fixture
def of_the_standard(kit):
    def load(name: str, dtype: torch.dtype = torch.float32) -> Stored:
        arrays = {}
        for file in ("data.npz", name):
            with np.load(kit / file, allow_pickle=False) as found:
                arrays |= {key: torch.from_numpy(found[key]) for key in found.files}
        model = load_kit_model(kit, "plain").requires_grad_(False)
        return Stored(model.to(dtype), arrays["x_test"].to(dtype), arrays["y_test"], arrays)

    return load


class Curved(nn.Module):
    """Eight classes of images [N, 1, 4, 4], computed an image at a time whatever the batch."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 16, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        z = (x.flatten(1)[:, None] * self.weight).sum(2)
        return z + 0.5 * (3 * z).sin()


@pytest.fixture
def curved() -> tuple[nn.Module, Tensor, Tensor]:
    """A net, images, and labels of which the net gets all but the first three right."""
    model, x = Curved(), torch.rand(40, 1, 4, 4, dtype=torch.float64)
    ranked = model(x).argsort(1, descending=True)
    return model, x, torch.cat([ranked[:3, 1], ranked[3:, 0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_the_search_takes_the_steps_of_the_standard(of_the_standard, norm, dtype):
    model, x, y, trace = of_the_standard(f"trace_plain_{NAMES[norm]}.npz", dtype)
    x, y, seen = x[trace["index"]], y[trace["index"]], []

    def observed(points: Tensor) -> Tensor:
        seen.append(points.detach().clone())
        return model(points)

    _, distance, _ = fab(observed, x, y, trace["apgd_t_target"], norm=norm, eps=0)
    assert len(seen) == 200, "one pass for the gradient and one to classify, an iteration"
    for passes, name in ((seen[0::2], "fab_t_grad_points"), (seen[1::2], "fab_t_new_points")):
        off = (torch.stack(passes) - trace[name]).abs().flatten(2).amax((0, 2))
        assert (off < 1e-4).sum() >= 11, "one point in twelve may turn back once more or less, by rounding"
    off = (distance / trace["fab_t_norm"] - 1).abs()
    assert (off < 1e-4).sum() >= 11 and off.max() < 0.02


@pytest.mark.no_cover  # what it runs is counted by others
def test_alone_it_breaks_what_the_standard_breaks(of_the_standard):
    model, x, y, stored = of_the_standard("aa_plain_Linf_individual_seed0.npz")
    _, broken, _ = fab_t(model, x[:60], y[:60], norm="linf", eps=EPS["linf"])
    robust = stored["robust_to_fab_t"][:60]
    assert (robust != ~broken).sum() <= 2


@pytest.mark.parametrize("norm", NORMS)
def test_of_a_linear_net_it_finds_the_distance_of_the_nearest_boundary(norm):
    weight = torch.randn(5, 16, dtype=torch.float64)
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64) + 0.01 * torch.randn(20, 1, 4, 4, dtype=torch.float64)

    def logits_of(points: Tensor) -> Tensor:
        return (points.flatten(1) - 0.5) @ weight.T

    logits = logits_of(x)
    y, target = logits.topk(2).indices.unbind(1)
    dual = (weight[target] - weight[y]).norm(p=1 if norm == "linf" else 2, dim=1)
    lead = (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None]))[:, 0]
    closest, distance, _ = fab(logits_of, x, y, target, norm=norm, eps=0)
    # Steps end 5 % behind the boundary, those from a tenth before it 0.5 %; another class may lie nearer.
    assert (distance <= 1.02 * lead / dual).all()
    assert (distance > lead / dual)[logits_of(closest).argmax(1) == target].all()
    assert (logits_of(closest).argmax(1) == target).sum() > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_broken_points_lie_in_the_ball_and_are_misclassified_and_others_stay(norm, dtype):
    model, x = Curved(dtype), torch.rand(60, 1, 4, 4, dtype=dtype)
    y = model(x).argmax(1)
    before, eps = x.clone(), EPS[norm] / 3
    found, broken, _ = fab_t(model, x, y, norm=norm, eps=eps, targets=3, steps=20)
    assert 5 < broken.sum() < 55
    assert found.dtype == dtype and found.min() >= 0 and found.max() <= 1
    assert (lengths(found - x, norm) <= eps).all()
    assert torch.equal(model(found).argmax(1) != y, broken)
    assert torch.equal(found[~broken], x[~broken])
    assert torch.equal(x, before) and model.weight.grad is None


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_is_broken_just_if_its_distance_is_at_most_eps(curved, norm):
    model, x, y = curved
    x, y = x[3:], y[3:]
    target = model(x).topk(2).indices[:, 1]
    _, distance, _ = fab(model, x, y, target, norm=norm, eps=0, steps=30)
    eps = float(distance.median())
    _, at, _ = fab_t(model, x, y, norm=norm, eps=eps, targets=1, steps=30)
    _, below, _ = fab_t(model, x, y, norm=norm, eps=np.nextafter(eps, 0), targets=1, steps=30)
    assert torch.equal(at, distance <= eps)
    assert torch.equal(below, distance < eps) and below.sum() < at.sum()


def test_an_image_that_is_misclassified_breaks_by_itself(curved):
    model, x, y = curved
    found, broken, _ = fab_t(model, x, y, norm="linf", eps=1e-6, targets=7, steps=3)
    assert broken.tolist() == [True] * 3 + [False] * 37
    assert torch.equal(found, x)


@pytest.mark.parametrize("norm", NORMS)
def test_a_result_depends_on_neither_batch_nor_order(curved, norm):
    model, x, y = curved

    def attack(rows: Tensor) -> Found:
        return fab_t(model, x[rows], y[rows], norm=norm, eps=EPS[norm] / 3, targets=2, steps=12)

    found, broken, _ = attack(torch.arange(40))
    assert 3 < broken.sum() < 40
    for rows in (*torch.arange(40).split(15), torch.tensor([9]), torch.randperm(40)):
        again, broken_again, _ = attack(rows)
        torch.testing.assert_close(again, found[rows], rtol=0, atol=1e-9)
        assert torch.equal(broken_again, broken[rows])


def test_dropping_broken_points_changes_no_other(curved):
    model, x, y = curved
    target = model(x).topk(3).indices[:, 2]
    whole, distance, _ = fab(model, x, y, target, norm="l2", eps=0, steps=30)
    for every in (1, 7, 30, 100):
        closest, near, _ = fab(model, x, y, target, norm="l2", eps=0.3, steps=30, compact_every=every)
        far = near > 0.3
        assert torch.equal(far, distance > 0.3) and 3 < far.sum() < 37
        torch.testing.assert_close(closest[far], whole[far], rtol=0, atol=1e-9)
        assert (near[~far] >= distance[~far] - 1e-9).all()


def test_without_a_gradient_nothing_moves():
    x = torch.rand(4, 1, 4, 4)
    weight = torch.randn(8, 16)

    def rounded(points: Tensor) -> Tensor:
        return (points * 4).round().flatten(1) @ weight.T

    found, broken, _ = fab_t(rounded, x, rounded(x).argmax(1), norm="l2", eps=0.5, targets=7, steps=5)
    assert torch.equal(found, x) and not broken.any()


@pytest.mark.parametrize("norm", NORMS)
def test_an_iteration_never_waits_for_the_device(curved, norm, monkeypatch):
    model, x, y = curved
    start = Search(x, y, (y + 1) % 8, x, x, x.new_full((40, 1, 1, 1), torch.inf), y < 0, 0 * x)
    with pytest.raises(HostSync), NoHostSync():
        advance(model, start, norm)  # of a CPU's tensors one may ask how far they are
    monkeypatch.setattr(projections, "_settled", lambda later, time: False)
    with NoHostSync():
        advance(model, start, norm)


def test_given_clean_logits_are_not_computed_again(curved):
    model, x, y = curved
    passes = []

    def counted(points: Tensor) -> Tensor:
        passes.append(len(points))
        return model(points)

    clean = model(x)
    expected = fab_t(model, x, y, norm="l2", eps=1e-3, targets=2, steps=4)
    found = fab_t(counted, x, y, norm="l2", eps=1e-3, targets=2, steps=4, clean_logits=clean)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    # Two targets, four iterations, a pass with and a pass without the gradient, and no more.
    assert len(passes) == 16


def test_no_images_are_no_work(curved):
    images = torch.empty(0, 1, 4, 4, dtype=torch.float64)
    found, broken, _ = fab_t(curved[0], images, torch.empty(0, dtype=torch.int64), norm="l2", eps=1, targets=7)
    assert found.shape == (0, 1, 4, 4) and broken.shape == (0,)


def test_too_few_classes_are_said(curved):
    model, x, y = curved
    with pytest.raises(UserError, match="takes 9 wrong classes and needs 10 classes; the model has 8: give 7 targets"):
        fab_t(model, x, y, norm="linf", eps=0.1)
