"""Choosing a branch for one forward changes nothing for the next."""

import torch
from torch import nn

from fastarat.attacks.pgd import perturb
from fastarat.config.attack import AttackConfig
from fastarat.config.method import ARATConfig
from fastarat.methods.registry import build_method
from fastarat.models.convert import convert_to_split_batch_norm, plain_branch
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import SplitBatchNorm2d, forward, statistics_of


def a_net() -> nn.Module:
    model = build_model("digits", 10, 1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SplitBatchNorm2d):
                layer.running_mean[0] += 0.5  # so that the branches differ
    return model


def test_a_net_answers_as_before_after_an_attack_a_loss_and_a_clean_forward():
    model, x, y = a_net(), torch.rand(4, 1, 8, 8), torch.arange(4)
    method = build_method(ARATConfig(), model, (1, 8, 8))
    before, statistics = model(x), [s.clone() for s in statistics_of(model)]
    perturb(model, x, y, AttackConfig(steps=2, batch_norm="frozen"))
    forward(model, x, "clean", "eval")
    assert torch.equal(model(x), before)
    assert all(torch.equal(a, b) for a, b in zip(statistics_of(model), statistics, strict=True))
    method.loss(model, x, x, y)
    assert model(x).shape == before.shape  # not two halves of the four images
    assert not torch.equal(next(iter(statistics_of(model))), statistics[0])  # a loss does train the statistics


def test_a_split_net_called_by_itself_follows_its_own_train_and_eval_mode():
    model, x = a_net(), torch.rand(4, 1, 8, 8)
    assert torch.equal(model(x), forward(model, x, "adv", "eval"))
    model.train()
    assert torch.equal(model(x), forward(model, x, "adv", "frozen"))


def test_the_branch_of_a_wrapped_net_can_be_chosen_too():
    model, x = a_net(), torch.rand(4, 1, 8, 8)
    wrapped = nn.Sequential(nn.Identity(), model)
    for branch in ("clean", "adv"):
        assert torch.equal(forward(wrapped, x, branch, "eval"), forward(model, x, branch, "eval"))
    assert not torch.equal(forward(wrapped, x, "clean"), forward(wrapped, x, "adv"))


def test_batch_norms_of_vectors_and_volumes_are_split_too():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.rand(4, 1, 8, 8)
    split = convert_to_split_batch_norm(net)
    torch.testing.assert_close(forward(split, x, "clean"), net(x))
    plain = plain_branch(split)
    assert isinstance(plain[2], nn.BatchNorm1d)
    torch.testing.assert_close(plain(x), net(x))
