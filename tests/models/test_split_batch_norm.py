"""The two-branch batch-norm does what torch.nn.BatchNorm2d does to each half, in all three kinds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastarat.models.split_batch_norm import SplitBatchNorm2d

CHANNELS = 3
# float64 keeps 1e-16 an operation; sums over a few hundred values leave some 1e-14.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
KINDS = ("split", "shared", "mixed")


def random_layer(kind: str) -> SplitBatchNorm2d:
    layer = SplitBatchNorm2d(CHANNELS, kind).double()
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    nn.init.normal_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return layer


def ordinary(layer: SplitBatchNorm2d, i: int) -> nn.BatchNorm2d:
    """torch's batch-norm with set `i` of the layer's parameters and statistics."""
    norm = nn.BatchNorm2d(CHANNELS, momentum=layer.context.momentum or layer.momentum).double()
    norm.load_state_dict({name: value[i] for name, value in layer.state_dict().items()}, strict=False)
    return norm


def images(n: int = 6) -> torch.Tensor:
    """The halves differ in mean and spread, so that mixing them would show."""
    x = torch.randn(n, CHANNELS, 4, 5, dtype=torch.float64)
    x[n // 2 :] = 3 * x[n // 2 :] + 2
    return x.requires_grad_()


def run_both(kind: str, layer: SplitBatchNorm2d, x: torch.Tensor, order=("clean", "adv")):
    """What torch's batch-norms give for the two halves, and those batch-norms."""
    if kind == "mixed":
        norm = ordinary(layer, 0)
        return norm(x), [norm]
    norms = {"clean": ordinary(layer, 0)}
    norms["adv"] = ordinary(layer, 1) if kind == "split" else norms["clean"]
    halves = dict(zip(("clean", "adv"), x.chunk(2), strict=True))
    done = {branch: norms[branch](halves[branch]) for branch in order}
    return torch.cat([done["clean"], done["adv"]]), [norms["clean"], norms["adv"]][: 2 if kind == "split" else 1]


def assert_same_statistics(layer: SplitBatchNorm2d, norms: list[nn.BatchNorm2d]) -> None:
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(layer, name), torch.stack([getattr(n, name) for n in norms]), **CLOSE)


@pytest.mark.parametrize("momentum", [0.1, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_both_branches_at_once_give_torchs_values_gradients_and_statistics(kind, momentum):
    layer, x = random_layer(kind), images()
    layer.context.branch, layer.context.statistics, layer.context.momentum = "both", "train", momentum
    expected, norms = run_both(kind, layer, x)
    out = layer(x)
    torch.testing.assert_close(out, expected, **CLOSE)
    assert_same_statistics(layer, norms)

    upstream = torch.randn_like(out)
    ours = torch.autograd.grad((out * upstream).sum(), [x, layer.weight, layer.bias])
    leaves = [x, *(n.weight for n in norms), *(n.bias for n in norms)]
    theirs = torch.autograd.grad((expected * upstream).sum(), leaves)
    torch.testing.assert_close(ours[0], theirs[0], **CLOSE)
    torch.testing.assert_close(ours[1], torch.stack(theirs[1 : 1 + len(norms)]), **CLOSE)
    torch.testing.assert_close(ours[2], torch.stack(theirs[1 + len(norms) :]), **CLOSE)


@pytest.mark.parametrize("order", [("clean", "adv"), ("adv", "clean")])
def test_shared_statistics_are_updated_in_the_order_the_method_asks_for(order):
    layer, x = random_layer("shared"), images()
    layer.context.branch, layer.context.statistics, layer.context.order = "both", "train", order
    expected, norms = run_both("shared", layer, x, order)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    assert_same_statistics(layer, norms)


@pytest.mark.parametrize("branch", ["clean", "adv"])
@pytest.mark.parametrize("statistics", ["train", "frozen", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_branch_is_one_of_torchs_batch_norms(kind, statistics, branch):
    layer, x = random_layer(kind), images()
    layer.context.branch, layer.context.statistics = branch, statistics
    i = 1 if kind == "split" and branch == "adv" else 0
    norm = ordinary(layer, i).train(statistics != "eval")
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    torch.testing.assert_close(layer(x), norm(x), **CLOSE)
    for name, buffer in layer.named_buffers():
        expected = before[name]
        if statistics == "train":
            expected[i] = getattr(norm, name)
        torch.testing.assert_close(buffer, expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_normalises_by_the_batch_and_leaves_the_statistics(kind):
    layer, x = random_layer(kind), images()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.context.branch, layer.context.statistics = "both", "frozen"
    torch.testing.assert_close(layer(x), run_both(kind, layer, x)[0], **CLOSE)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_eval_uses_the_running_statistics_of_each_branch():
    layer, x = random_layer("split"), images()
    layer.context.branch, layer.context.statistics = "both", "eval"
    clean, adv = x.chunk(2)
    expected = torch.cat([ordinary(layer, 0).eval()(clean), ordinary(layer, 1).eval()(adv)])
    torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_the_residual_is_added_before_the_relu():
    layer, x = random_layer("split"), images()
    layer.context.branch, layer.context.statistics = "both", "frozen"
    residual = torch.randn_like(x)
    out = layer(x)
    torch.testing.assert_close(layer(x, residual=residual), out + residual, **CLOSE)
    torch.testing.assert_close(layer(x, relu=True), F.relu(out), **CLOSE)
    torch.testing.assert_close(layer(x, residual=residual, relu=True), F.relu(out + residual), **CLOSE)


def test_recorded_features_are_the_pooled_relu_of_the_output_before_the_residual():
    layer, x = random_layer("split"), images()
    layer.taps, layer.context.record = ("here",), True
    layer.context.branch, layer.context.statistics = "both", "frozen"
    layer(x, residual=torch.randn_like(x), relu=True)
    features = layer.context.features["here"]
    torch.testing.assert_close(features, F.relu(run_both("split", layer, x)[0]).mean((2, 3)), **CLOSE)


def test_features_of_a_half_precision_forward_are_float32():
    layer = SplitBatchNorm2d(CHANNELS).bfloat16()
    layer.taps, layer.context.record = ("here",), True
    layer(torch.randn(2, CHANNELS, 4, 4, dtype=torch.bfloat16))
    assert layer.context.features["here"].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind):
    layer = random_layer(kind)
    layer.context.branch, layer.context.statistics = "both", "frozen"

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    x = torch.randn(4, CHANNELS, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias))
