"""What the tests of methods share: a small net's forward written out in plain torch, and its gradients compared."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastarat.config.method import MethodSettings
from fastarat.methods.method import Method
from fastarat.methods.registry import build_method
from fastarat.models.convert import convert_to_split_batch_norm

Y = torch.tensor([2, 0])
# float64: some fifty operations forward and back, 1e-16 each; batch-norm over two rows magnifies a little.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def images() -> tuple[Tensor, Tensor]:
    """Two clean images and two adversarial ones."""
    x = torch.rand(2, 1, 5, 5, dtype=torch.float64)
    return x, (x + 0.3 * torch.rand_like(x)).clamp(0, 1)


def net_and_method(settings: MethodSettings, small_net: nn.Module) -> tuple[nn.Module, Method]:
    """The net with the method's batch-norms, and the method, both in float64."""
    net = convert_to_split_batch_norm(small_net, settings.batch_norm)
    return net, build_method(settings, net, (1, 5, 5)).double()


def features(net: nn.Module, x: Tensor) -> Tensor:
    """Pooled features of a `SmallNet` with one set of batch-norms, normalised by the batch's own statistics."""
    out = F.conv2d(x, net.conv.weight, padding=1)
    mean = out.mean((0, 2, 3), keepdim=True)
    variance = (out - mean).square().mean((0, 2, 3), keepdim=True)
    scale, shift = net.bn.weight[0].view(1, -1, 1, 1), net.bn.bias[0].view(1, -1, 1, 1)
    return ((out - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp_min(0).mean((2, 3))


def probabilities(net: nn.Module, x: Tensor) -> Tensor:
    """Of a `SmallNet`'s classes [B, K], by the batch's own statistics."""
    logits = features(net, x) @ net.linear.weight.T + net.linear.bias
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def cross_entropy(p: Tensor, smoothing: float = 0.0) -> Tensor:
    """Against `Y`, a share of every label spread over all classes."""
    label = (1 - smoothing) * torch.eye(p.shape[1], dtype=p.dtype)[Y] + smoothing / p.shape[1]
    return -(label * p.log()).sum(1).mean()


def assert_same_loss(method: Method, net: nn.Module, loss: Tensor, expected: Tensor) -> None:
    """The value, and the gradient of every parameter that trains."""
    torch.testing.assert_close(loss, expected, **CLOSE)
    trained = [p for p in (*net.parameters(), *method.parameters()) if p.requires_grad]
    ours, theirs = (torch.autograd.grad(each, trained, retain_graph=True) for each in (loss, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


def statistics_after(net: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The running mean and variance of a `SmallNet` after forwards of these inputs, one after the other."""
    mean, variance = net.bn.running_mean[0].clone(), net.bn.running_var[0].clone()
    with torch.no_grad():
        for x in inputs:
            out = F.conv2d(x, net.conv.weight, padding=1).transpose(0, 1).flatten(1)
            mean, variance = 0.9 * mean + 0.1 * out.mean(1), 0.9 * variance + 0.1 * out.var(1)
    return mean, variance


def assert_statistics(net: nn.Module, expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(net.bn.running_mean[0], expected[0], **CLOSE)
    torch.testing.assert_close(net.bn.running_var[0], expected[1], **CLOSE)
