"""What the attacks raise, against sums worked out by hand."""

import math

import numpy as np
import pytest
import torch

from fastarat.attacks.objectives import dlr, objective, point_losses, targeted_dlr

# Two images, three classes, probabilities that are easy to read.
P = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
Q = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64)
Y = torch.tensor([0, 1])
# Logits may be shifted: probabilities, and so cross-entropy and KL, are the same.
SHIFT = torch.tensor([[3.0], [-2.0]], dtype=torch.float64)


def test_cross_entropy_is_summed_over_the_batch():
    value = objective("cross-entropy", P.log() + SHIFT, Y, None)
    assert float(value) == pytest.approx(-math.log(0.5) - math.log(0.1), rel=1e-14)


def test_kl_is_from_the_clean_to_the_adversarial_distribution():
    value = objective("kl", Q.log() + SHIFT, Y, P.log())
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(0.5) + 2 * 0.1 * math.log(0.5) + 0.8 * math.log(8 / 6)
    assert float(value) == pytest.approx(by_hand, rel=1e-13)


def test_kl_of_equal_distributions_is_zero_and_so_is_its_gradient():
    logits = (P.log() + SHIFT).requires_grad_()
    value = objective("kl", logits, Y, P.log())
    (gradient,) = torch.autograd.grad(value, logits)
    # Differences of numbers near 1 in float64.
    assert abs(float(value.detach())) < 1e-15 and gradient.abs().max() < 1e-15


def test_margin_is_the_best_wrong_logit_minus_the_true_one():
    logits = torch.tensor([[2.0, 5.0, -1.0], [7.0, 1.5, 8.0]], dtype=torch.float64)
    assert float(objective("margin", logits, Y, None)) == (5 - 2) + (8 - 1.5)
    assert float(objective("margin", logits, torch.tensor([1, 2]), None)) == (2 - 5) + (7 - 8)


def test_margin_pulls_up_the_best_wrong_class_and_pushes_down_the_true_one():
    logits = torch.tensor([[2.0, 5.0, -1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(objective("margin", logits, torch.tensor([0]), None), logits)
    assert gradient.tolist() == [[-1.0, 1.0, 0.0]]


@pytest.mark.parametrize("name", ["cross-entropy", "kl", "margin"])
def test_an_images_gradient_does_not_depend_on_its_company(name):
    logits = (Q.log() + SHIFT).requires_grad_()
    (together,) = torch.autograd.grad(objective(name, logits, Y, P.log()), logits)
    (alone,) = torch.autograd.grad(objective(name, logits[:1], Y[:1], P.log()[:1]), logits)
    torch.testing.assert_close(together[:1], alone[:1], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", ["cross-entropy", "kl", "margin"])
@pytest.mark.parametrize(
    ("given", "taken"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_objectives_are_taken_in_float32_or_wider(name, given, taken):
    assert objective(name, P.log().to(given), Y, P.log().to(taken)).dtype == taken


# Two images, five classes: the true class first of all, and third.
Z = torch.tensor([[6.0, 1.0, 4.0, 3.0, 2.0], [5.0, 3.5, 4.0, 7.0, 1.0]], dtype=torch.float64)
TRUE, TARGET = torch.tensor([0, 2]), torch.tensor([3, 1])


def test_dlr_is_the_lead_of_the_best_wrong_class_over_the_spread_of_the_first_three():
    assert dlr(Z, TRUE).tolist() == pytest.approx([(4 - 6) / (6 - 3), (7 - 4) / (7 - 4)], rel=1e-11)


def test_targeted_dlr_is_the_lead_of_the_target_over_the_spread_to_the_third_and_fourth():
    by_hand = [(3 - 6) / (6 - (3 + 2) / 2), (3.5 - 4) / (7 - (4 + 3.5) / 2)]
    assert targeted_dlr(Z, TRUE, TARGET).tolist() == pytest.approx(by_hand, rel=1e-11)


def test_both_dlr_losses_and_their_gradients_are_the_golden_ones(golden):
    if not (golden / "autoattack").is_dir():
        pytest.skip("shared/golden/autoattack is not here")
    with np.load(golden / "autoattack" / "unit_vectors.npz") as file:
        stored = {key: torch.from_numpy(file[key]) for key in file.files if key.startswith(("logits", "y", "dlr"))}
    for name, loss in (("dlr", "dlr"), ("dlr_targeted", "targeted-dlr")):
        logits = stored["logits"].requires_grad_()
        losses = point_losses(loss, logits, stored["y"], stored["y_target"])
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        torch.testing.assert_close(losses.detach(), stored[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient, stored[f"{name}_grad"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["dlr", "targeted-dlr"])
def test_a_factor_on_the_logits_leaves_dlr_as_it_is(name):
    losses = point_losses(name, Z, TRUE, TARGET)
    torch.testing.assert_close(point_losses(name, 1000 * Z, TRUE, TARGET), losses, rtol=1e-11, atol=0)


def test_dlr_of_equal_logits_is_zero_not_undefined():
    equal = torch.zeros(2, 5)
    assert not dlr(equal, TRUE).any() and not targeted_dlr(equal, TRUE, TARGET).any()


def test_cross_entropy_of_points_sums_to_that_of_the_batch():
    losses = point_losses("cross-entropy", P.log() + SHIFT, Y, Y)
    assert losses.tolist() == pytest.approx([-math.log(0.5), -math.log(0.1)], rel=1e-14)


@pytest.mark.parametrize("name", ["cross-entropy", "dlr", "targeted-dlr"])
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16])
def test_losses_of_points_are_taken_in_float32_or_wider(name, given):
    assert point_losses(name, Z.to(given), TRUE, TARGET).dtype == torch.float32
    assert point_losses(name, Z, TRUE, TARGET).dtype == torch.float64
