"""A net by the fused kernels is the net layer by layer: logits, features, gradients and running statistics."""

import copy
from unittest.mock import patch

import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastarat.config.model import MODELS
from fastarat.models.convert import convert_to_split_batch_norm
from fastarat.models.features import tap_layers
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import forward, forward_context, forward_with_features

# float64: some hundred operations between images and logits.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def pair(kind, model="tiny", kernels=TRITON):
    """Two nets with equal, uneven parameters and statistics: layer by layer, and by these kernels, fused."""
    net = build_model(model, 3, batch_norm=kind).double().to(memory_format=torch.channels_last).train()
    for name, tensor in net.state_dict().items():
        if "bn" in name:
            nn.init.uniform_(tensor, 0.5, 1.5)
    tap_layers(net, net.aligned_layers)
    fused = copy.deepcopy(net)
    forward_context(fused).kernels = kernels
    assert forward_context(net).kernels is PYTORCH
    return net, fused


def images() -> torch.Tensor:
    return torch.rand(8, 3, 16, 16, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


# Batch-norms of either net know nothing of its wiring, which one kind of statistics shows.
@pytest.mark.parametrize("kind", ["split", "shared", "mixed"])
@pytest.mark.parametrize("branch", ["clean", "adv", "both"])
@pytest.mark.parametrize(
    ("model", "statistics"), [*(("digits", each) for each in ("train", "frozen", "eval")), ("wrn-10-1", "train")]
)
def test_every_pass_gives_the_same(model, kind, branch, statistics):
    assert_the_same(model, kind, branch, statistics)


@pytest.mark.parametrize("kind", ["split", "shared", "mixed"])
def test_a_shape_that_is_left_to_pytorch_gives_the_same(kind):
    some = TRITON.without(("fused_batch_norm@32x4x4", "fused_batch_norm@9x9x9"))
    assert some.fuses((16, 16, 16)) and not some.fuses((32, 4, 4)) and not PYTORCH.fuses((16, 16, 16))
    assert_the_same("tiny", kind, "both", "train", some)
    _, net = pair(kind, kernels=some)
    with Called() as operations:
        forward(net, images(), "both", "train")
    # The second block's: two and that of its shortcut, each half by itself.
    plain = 3 if kind == "mixed" else 6
    names = [name.partition(".default")[0] for name in operations.names]
    assert (names.count("aten.native_batch_norm"), names.count("fastarat.batch_norm_apply")) == (plain, 7)


@pytest.mark.parametrize("model", ["resnet18-imagenet", "resnet50"])
def test_nets_for_large_images_give_the_same(model):
    # One block of each width, and one after another of the last.
    with patch.dict(MODELS[model][1], num_blocks=(1, 1, 1, 2), widths=(8, 16, 24, 32)):
        assert_the_same(model, "split", "both", "eval")


def assert_the_same(model, kind, branch, statistics, kernels=TRITON):
    results = []
    for net in pair(kind, model, kernels):
        torch.manual_seed(1)
        x = images().requires_grad_()
        logits, features = forward_with_features(net, x, branch, statistics)
        (logits.square().sum() + sum(z.square().sum() for z in features.values())).backward()
        gradients = [x.grad, *(p.grad for p in net.parameters())]
        results.append([logits, *features.values(), *gradients, *net.buffers()])
    for mine, theirs in zip(*results, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("kind", ["split", "shared"])
def test_running_statistics_move_by_dense_lists(kind):
    _, fused = pair(kind)
    # PyTorch moves lists by one launch where every tensor is dense, else each tensor by its own.
    with patch("fastarat.models.split_batch_norm.move_running_statistics") as move:
        forward(fused, images(), "both", "train")
    running, batch, _, _ = move.call_args.args
    assert all(tensor.is_contiguous() for tensor in (*running, *batch))


@pytest.mark.parametrize("branch", ["adv", "both"])
def test_by_running_statistics_no_launch_is_added_to_the_plain_ones(branch):
    plain, fused = (called(net, branch) for net in pair("split"))
    assert plain == fused and not any("fastarat" in name for name in fused)


def called(net, branch) -> list[str]:
    """The operations of a forward pass by running statistics and of the input's gradient."""
    x = images().requires_grad_()
    with Called() as operations:
        torch.autograd.grad(forward(net, x, branch, "eval").sum(), x)
    return operations.names


class Called(TorchDispatchMode):
    """Notes the names of operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", [("clean", "adv"), ("adv", "clean")])
def test_shared_statistics_move_in_the_methods_order(order):
    nets = pair("shared")
    x = images()
    for net in nets:
        forward_context(net).order = order
        forward(net, x, "both", "train")
    for mine, theirs in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_a_momentum_of_the_pass_goes_before_the_layers_own():
    nets = pair("split")
    for net in nets:
        forward_context(net).momentum = 1.0
        torch.manual_seed(1)
        forward(net, images(), "adv", "train")
    for mine, theirs in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


class Twice(nn.Module):
    """A net that calls one batch-norm twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.bn(self.again(self.bn(self.conv(x)))).mean((2, 3))


def test_a_layer_called_twice_moves_its_statistics_twice():
    net = convert_to_split_batch_norm(Twice().double()).to(memory_format=torch.channels_last).train()
    fused = copy.deepcopy(net)
    forward_context(fused).kernels = TRITON
    x = torch.rand(4, 2, 5, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    for each in (net, fused):
        forward(each, x, "both", "train")
    torch.testing.assert_close(net.bn.running_mean, fused.bn.running_mean, **CLOSE)
    torch.testing.assert_close(net.bn.running_var, fused.bn.running_var, **CLOSE)


class Halved(Twice):
    """Its second call sees maps of half the size."""

    def forward(self, x):
        return self.bn(self.again(nn.functional.avg_pool2d(self.bn(self.conv(x)), 2))).mean((2, 3))


@pytest.mark.parametrize("left_out", ["4x4x4", "4x2x2"])
def test_a_layer_called_twice_moves_in_the_order_of_its_calls_where_one_shape_is_left_to_pytorch(left_out):
    net = convert_to_split_batch_norm(Halved().double()).to(memory_format=torch.channels_last).train()
    mixed = copy.deepcopy(net)
    forward_context(mixed).kernels = TRITON.without((f"fused_batch_norm@{left_out}",))
    x = torch.rand(4, 2, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    for each in (net, mixed):
        forward(each, x, "both", "train")
    torch.testing.assert_close(net.bn.running_mean, mixed.bn.running_mean, **CLOSE)
    torch.testing.assert_close(net.bn.running_var, mixed.bn.running_var, **CLOSE)


def test_a_forward_that_fails_leaves_nothing_behind():
    _, fused = pair("split")
    before = [buffer.clone() for buffer in fused.buffers()]
    with pytest.raises(RuntimeError):
        forward(fused, torch.rand(8, 5, 16, 16, dtype=torch.float64), "adv", "train")
    fused.linear = nn.Linear(1, 1).double()
    with pytest.raises(RuntimeError):
        forward(fused, images(), "adv", "train")
    assert forward_context(fused).batches == []
    assert all(torch.equal(now, was) for now, was in zip(fused.buffers(), before, strict=True))
