"""AT is the cross-entropy of the adversarial branch on adversarial images."""

import copy

import torch
import torch.nn.functional as F

from fastarat.config.method import ATConfig
from fastarat.methods.registry import build_method
from fastarat.models.convert import convert_to_split_batch_norm

Y = torch.tensor([2, 0, 1, 1])


def test_the_loss_is_the_cross_entropy_of_the_adversarial_images(small_net):
    net = convert_to_split_batch_norm(small_net, ATConfig().batch_norm)
    x, x_adv = torch.rand(2, 4, 1, 5, 5, dtype=torch.float64)
    ordinary = copy.deepcopy(small_net).train()
    method = build_method(ATConfig(), net, (1, 5, 5))
    loss, metrics = method.loss(net, x, x_adv, Y)
    logits = ordinary(x_adv)
    # The same operations in float64.
    torch.testing.assert_close(loss, F.cross_entropy(logits, Y), rtol=1e-12, atol=0)
    assert tuple(metrics) == method.metrics == ("loss", "adversarial_accuracy")
    assert metrics["loss"] == loss.detach() and not metrics["loss"].requires_grad
    assert float(metrics["adversarial_accuracy"]) == float((logits.argmax(1) == Y).float().mean())
    torch.testing.assert_close(net.bn.running_mean[0], ordinary.bn.running_mean, rtol=1e-12, atol=1e-14)


def test_at_trains_nothing_besides_the_net_and_measures_no_balance(small_net):
    method = build_method(ATConfig(), convert_to_split_batch_norm(small_net, "shared"), (1, 5, 5))
    assert list(method.parameters()) == [] and method.num_balance_images == 0


def test_the_clean_branch_of_a_split_net_is_left_alone(small_net):
    net = convert_to_split_batch_norm(small_net)
    before = net.bn.running_mean[0].clone()
    x, x_adv = torch.rand(2, 4, 1, 5, 5, dtype=torch.float64)
    loss, _ = build_method(ATConfig(), net, (1, 5, 5)).loss(net, x, x_adv, Y)
    (gradient,) = torch.autograd.grad(loss, net.bn.weight)
    assert torch.equal(net.bn.running_mean[0], before) and gradient[0].eq(0).all() and gradient[1].ne(0).any()
