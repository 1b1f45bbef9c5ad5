"""A first convolution that computes on eight channels is the one that takes the images' channels."""

import copy
from unittest.mock import patch

import pytest
import torch
from torch import nn

from fastarat.config.model import MODELS
from fastarat.models.convert import plain_branch
from fastarat.models.padded_stem import PaddedStem, pad_stem, unpad_stem
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import forward

# float64: a sum has some zeros more, which may come in another order; some hundred operations follow.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
SMALL = {"num_blocks": (1, 1), "widths": (8, 16)}


def pair(name: str, channels: int) -> tuple[nn.Module, nn.Module]:
    """The net as it is, and with a stem of eight channels."""
    with patch.dict(MODELS["resnet18-imagenet"][1], {**SMALL, "strides": (1, 2)}):
        net = build_model(name, 3, channels).double().to(memory_format=torch.channels_last).train()
    padded = copy.deepcopy(net)
    assert pad_stem(padded, 8)
    return net, padded


@pytest.mark.parametrize(("name", "channels"), [("digits", 1), ("wrn-10-1", 3), ("resnet18-imagenet", 3)])
def test_logits_and_gradients_are_those_of_the_plain_stem(name, channels):
    results = []
    for net in pair(name, channels):
        torch.manual_seed(1)
        x = torch.rand(4, channels, 16, 16, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
        logits = forward(net, x, "both", "train")
        gradients = torch.autograd.grad(logits.square().sum(), [x, *net.parameters()])
        results.append([logits, *gradients, *net.state_dict().values()])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_the_first_convolution_computes_on_eight_channels_and_keeps_weights_of_three():
    net, padded = pair("wrn-10-1", 3)
    assert [layer for layer in padded.modules() if isinstance(layer, PaddedStem)] == [padded.conv1]
    with patch("torch.nn.functional.conv2d") as convolution:
        padded.conv1(torch.rand(2, 3, 16, 16, dtype=torch.float64))
    x, weight, *_ = convolution.call_args.args
    assert x.shape == (2, 8, 16, 16) and weight.shape == (16, 8, 3, 3)
    shapes, padded_shapes = ({name: value.shape for name, value in one.state_dict().items()} for one in (net, padded))
    assert shapes == padded_shapes and plain_branch(padded).state_dict()["conv1.weight"].shape == (16, 3, 3, 3)


def test_the_images_gradient_is_as_dense_as_the_images():
    """Kernels of the attack take no views."""
    _, padded = pair("wrn-10-1", 3)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(forward(padded, x, "adv", "frozen").sum(), x)
    assert gradient.stride() == x.stride()


def test_a_stem_that_is_no_longer_padded_is_the_one_that_it_was():
    net, padded = pair("wrn-10-1", 3)
    unpad_stem(padded)
    assert type(padded.conv1) is nn.Conv2d and vars(padded.conv1).keys() == vars(net.conv1).keys()


class OfAnother(nn.Conv2d):
    """A convolution whose forward may do more."""


@pytest.mark.parametrize(
    "stem",
    [
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        OfAnother(3, 8, 3),
        nn.Linear(3, 3),
    ],
)
def test_what_is_no_plain_convolution_stays_as_it_is_which_is_said(stem):
    kind = type(stem)
    assert not pad_stem(nn.Sequential(stem), 8)
    assert type(stem) is kind
