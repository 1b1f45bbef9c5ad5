"""Attacked images and loss surfaces of a model: what an analysis says of them is what they are."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastarat.analysis.perturbations import Attacked, attack_images, examples, perturbation_norms, pgd_20
from fastarat.analysis.surface import loss_surface


def attacked(fates: str) -> Attacked:
    """One-pixel images that are moved by 3/255 or 4/255 in turn: b(roken), r(obust) or w(rong before)."""
    x = torch.full((len(fates), 1, 1, 2), 0.5)
    shift = torch.tensor([[3 / 255, 0], [0, -4 / 255]]).repeat(len(fates), 1)[: len(fates)].view_as(x)
    y = torch.zeros(len(fates), dtype=torch.int64)
    before = torch.tensor([fate == "w" for fate in fates]).long()
    after = torch.tensor([fate in "bw" for fate in fates]).long()
    return Attacked(x, x + shift, y, before, after, torch.zeros_like(y, dtype=torch.bool))


def test_norms_are_told_apart_by_what_became_of_the_images():
    found = perturbation_norms(attacked("brbr"))
    assert [found[group]["num_images"] for group in ("broken", "robust", "wrong")] == [2, 2, 0]
    assert found["broken"]["linf_255"]["mean"] == pytest.approx(3, rel=1e-5)
    assert found["robust"]["linf_255"]["quantiles"]["50"] == pytest.approx(4, rel=1e-5)
    assert found["robust"]["l2"]["mean"] == pytest.approx(4 / 255, rel=1e-5)
    assert found["wrong"]["l2"] is None


def test_examples_are_half_broken_and_half_robust_while_there_are_such():
    assert examples(attacked("rrrrbbbbww"), 4) == [4, 5, 0, 1]
    assert examples(attacked("rrrrbww"), 4) == [4, 0, 1, 2]
    assert examples(attacked("ww"), 4) == [0, 1]


def test_an_attack_stays_in_its_ball_and_leaves_the_model_as_it_was(small_net):
    x, y = torch.rand(6, 1, 5, 5).double(), torch.arange(6) % 3
    before = {name: value.clone() for name, value in small_net.state_dict().items()}
    found = attack_images(small_net.train(), x, y, pgd_20("linf", 8), seed=0, batch=4)
    assert (found.x_adv - x).abs().max() <= 8 / 255 + 1e-12 and not torch.equal(found.x_adv, x)
    assert small_net.training
    assert all(torch.equal(value, before[name]) for name, value in small_net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(found.adversarial_prediction, small_net.eval()(found.x_adv).argmax(1))


class WrongOnce(nn.Module):
    """A net of class 0 whose gradient is NaN, and which is wrong at the second point it is asked about alone."""

    def __init__(self):
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        point = x.detach()
        if not any(torch.equal(point, other) for other in self.seen):
            self.seen.append(point)
        wrong = len(self.seen) > 1 and torch.equal(point, self.seen[1])
        root = (x - point).flatten(1).sum(1, keepdim=True).sqrt()  # 0, with a gradient of infinity, times 0 NaN
        return torch.tensor([1.0, 0, 0]).roll(int(wrong)) + 0 * root


def test_an_image_is_broken_if_any_iterate_is_misclassified():
    x, y = torch.rand(4, 1, 5, 5), torch.zeros(4, dtype=torch.int64)
    net = WrongOnce().eval()
    found = attack_images(net, x, y, pgd_20("linf", 8), seed=0)
    assert found.groups["broken"].all() and torch.equal(found.x_adv, net.seen[1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_surface_holds_the_images_loss_at_its_centre_and_the_gradients_step_beside_it(small_net, norm):
    x, y = torch.rand(2, 1, 5, 5).double() * 0.5 + 0.25, torch.tensor([0, 2])
    found = loss_surface(small_net, x, y, norm, 1e-3, seed=0)
    middle = len(found.radii) // 2
    assert found.radii[middle] == 0
    leaf = x.clone().requires_grad_()
    losses = F.cross_entropy(small_net(leaf), y, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    assert torch.allclose(found.loss[:, middle, middle], losses.detach(), rtol=1e-12)
    slope = gradient.abs().flatten(1).sum(1) if norm == "linf" else gradient.flatten(1).norm(dim=1)
    last = float(found.radii[-1]) * 1e-3
    rise = (found.loss[:, -1, middle] - found.loss[:, 0, middle]) / (2 * last)
    assert torch.allclose(rise, slope, rtol=1e-3)
    aside = (found.loss[:, middle, -1] - found.loss[:, middle, 0]).abs() / (2 * last)
    assert (aside < slope).all()
