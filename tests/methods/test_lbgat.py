"""LBGAT's loss against its formula written out in plain torch."""

import copy

import pytest
import torch

from fastarat.config.method import LBGATConfig
from fastarat.methods.lbgat import LBGAT
from fastarat.methods.registry import build_method
from fastarat.models.convert import convert_to_split_batch_norm
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import forward, forward_context
from tests.helpers.by_hand import (
    CLOSE,
    Y,
    assert_same_loss,
    assert_statistics,
    cross_entropy,
    features,
    images,
    probabilities,
    statistics_after,
)


def lbgat(small_net, **settings):
    """A `SmallNet` and LBGAT with another one as its teacher."""
    net = convert_to_split_batch_norm(small_net, "shared")
    teacher = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    forward_context(net).order = LBGAT.halves
    return net, LBGAT(LBGATConfig(**settings), teacher)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_the_loss_and_all_its_gradients_are_those_of_the_formula(small_net, beta, smoothing):
    net, method = lbgat(small_net, beta=beta, label_smoothing=smoothing)
    x, x_adv = images()
    teacher = method.teacher
    p, q = probabilities(net, x), probabilities(net, x_adv)
    student = features(net, x_adv) @ net.linear.weight.T + net.linear.bias
    taught = features(teacher, x) @ teacher.linear.weight.T + teacher.linear.bias
    expected = (student - taught).square().sum() / 6  # two images of three classes
    expected = expected + cross_entropy(probabilities(teacher, x), smoothing) + beta * (p * (p / q).log()).sum(1).mean()
    loss, metrics = method.loss(net, x, x_adv, Y)
    assert_same_loss(method, net, loss, expected)
    assert tuple(metrics) == method.metrics
    assert float(metrics["teacher_accuracy"]) == float((taught.argmax(1) == Y).double().mean())


def test_the_adversarial_half_moves_the_nets_statistics_first_and_clean_images_the_teachers(small_net):
    net, method = lbgat(small_net)
    x, x_adv = images()
    expected, taught = statistics_after(net, [x_adv, x]), statistics_after(method.teacher, [x])
    method.loss(net, x, x_adv, Y)
    assert_statistics(net, expected)
    assert_statistics(method.teacher, taught)


def test_the_registry_builds_a_teacher_of_its_own_and_sets_the_order():
    net = build_model("digits", 7, 2, batch_norm="shared")
    method = build_method(LBGATConfig(teacher="tiny"), net, (2, 8, 8))
    assert forward(method.teacher, torch.rand(3, 2, 8, 8)).shape == (3, 7)
    assert forward_context(net).order == ("adv", "clean") and forward_context(method.teacher) is not forward_context(
        net
    )
    assert LBGATConfig().teacher == "resnet18"
    mine, theirs = list(net.parameters()), list(method.parameters())
    assert theirs and not {id(p) for p in mine} & {id(p) for p in theirs} and all(p.requires_grad for p in theirs)


def test_without_the_divergence_the_net_is_trained_through_the_teachers_logits_alone(small_net):
    net, method = lbgat(small_net, beta=0.0)
    x, x_adv = images()
    terms = method.terms(net, x, x_adv, Y)
    (gradient,) = torch.autograd.grad(terms.classification["ce_teacher"], net.linear.weight, allow_unused=True)
    assert gradient is None
    assert terms.invariance["kl"].detach() == 0.0
    torch.testing.assert_close(terms.adversarial_logits, forward(net, x_adv, "adv", "frozen"), **CLOSE)
