"""What the attacks raise, against sums worked out by hand."""

import math

import pytest
import torch

from fastarat.attacks.objectives import objective

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
