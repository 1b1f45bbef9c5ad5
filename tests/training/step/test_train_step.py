"""One training step against the same step written anew with ordinary layers and torch's optimiser."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fastarat_kernels import philox
from fastarat_kernels.implementations import PYTORCH, TRITON
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastarat.attacks import pgd
from fastarat.config.attack import AttackConfig
from fastarat.config.method import ARATConfig, ATConfig
from fastarat.config.training import OptimizerConfig
from fastarat.data.loading.loader import Batch
from fastarat.methods.registry import build_method
from fastarat.models.convert import convert_to_split_batch_norm
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import forward
from fastarat.training.step.train_step import Controls, attack, train_step
from tests.helpers.step_parts import parts_of

SEED, W, GAMMA, RATE = 3, 0.6, 4.0, 0.05
ATTACK = AttackConfig(eps_255=20, step_255=8, steps=3)
# float64: two steps of some hundred operations; batch-norm over four rows magnifies a little.
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def batch(dtype: torch.dtype = torch.float64, channels: int = 1) -> Batch:
    return Batch(torch.rand(4, channels, 8, 8, dtype=dtype), torch.tensor([0, 1, 2, 0]), torch.arange(8, 12))


class Twin(nn.Module):
    """A `SmallNet` with two ordinary batch-norms and an ordinary predictor."""

    def __init__(self, net: nn.Module, method: nn.Module | None):
        super().__init__()
        self.conv, self.linear = copy.deepcopy(net.conv), copy.deepcopy(net.linear)
        self.norms = nn.ModuleList([copy.deepcopy(net.bn), copy.deepcopy(net.bn)])
        if method is not None:
            first, norm, relu, last = copy.deepcopy(method.predictors[0])
            ordinary = nn.BatchNorm1d(len(norm.weight)).double()
            self.predictor = nn.Sequential(first, ordinary, relu, last)
        self.train()

    def forward(self, x, branch):
        feature = F.relu(self.norms[branch](self.conv(x))).mean((2, 3))
        return self.linear(feature), feature


def attacked(twin: Twin, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
    u = philox.uniform(SEED, philox.Stream.ATTACK_START, step, rows, tuple(x.shape[1:]))
    x_adv = x + (ATTACK.eps * (2 * u - 1)).double()
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        F.cross_entropy(twin(x_adv, 1)[0], y).backward()
        x_adv = x_adv.detach() + ATTACK.step_size * x_adv.grad.sign()
        x_adv = torch.clamp(torch.clamp(x_adv, x - ATTACK.eps, x + ATTACK.eps), 0, 1)
    return x_adv


def test_arat_steps_are_those_written_with_ordinary_layers_and_torchs_sgd(small_net):
    net = convert_to_split_batch_norm(small_net)
    method = build_method(ARATConfig(gamma=GAMMA, layers=("bn",)), net, (1, 8, 8)).double()
    method.begin_epoch(torch.tensor(W, dtype=torch.float64))
    twin = Twin(small_net, method)
    parts = parts_of(net, method, ATTACK)
    optimizer = torch.optim.SGD(twin.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    for step in (7, 8):
        x, y, rows = batch()
        metrics = train_step(parts, Batch(x, y, rows), Controls.of(parts, step, RATE))

        x_adv = attacked(twin, x, y, rows, step)
        clean, z_clean = twin(x, 0)
        adversarial, z_adv = twin(x_adv, 1)
        cosine = F.cosine_similarity(twin.predictor(z_adv), z_clean.detach())
        ce_adv, ce_clean, invariance = F.cross_entropy(adversarial, y), F.cross_entropy(clean, y), (1 - cosine).mean()
        loss = W * ce_adv + (1 - W) * ce_clean + GAMMA * invariance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        expected = {
            "loss": loss,
            "adversarial_cross_entropy": ce_adv,
            "clean_cross_entropy": ce_clean,
            "invariance": GAMMA * invariance,
            "adversarial_accuracy": (adversarial.argmax(1) == y).double().mean(),
            "clean_accuracy": (clean.argmax(1) == y).double().mean(),
        }
        assert tuple(metrics) == tuple(expected) == method.metrics
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name].double(), value.detach(), **CLOSE, msg=name)

    pairs = {
        "conv": (net.conv.weight, twin.conv.weight),
        "linear": (net.linear.weight, twin.linear.weight),
        "bn weight": (net.bn.weight, torch.stack([n.weight for n in twin.norms])),
        "bn bias": (net.bn.bias, torch.stack([n.bias for n in twin.norms])),
        "bn mean": (net.bn.running_mean, torch.stack([n.running_mean for n in twin.norms])),
        "bn variance": (net.bn.running_var, torch.stack([n.running_var for n in twin.norms])),
        "predictor": (method.predictors[0][0].weight, twin.predictor[0].weight),
        "predictor mean": (method.predictors[0][1].running_mean, twin.predictor[1].running_mean),
    }
    for name, (mine, theirs) in pairs.items():
        torch.testing.assert_close(mine, theirs, **CLOSE, msg=name)


def test_at_steps_are_those_written_with_ordinary_layers(small_net):
    net = convert_to_split_batch_norm(small_net, "shared")
    twin = Twin(small_net, None)
    parts = parts_of(net, build_method(ATConfig(), net, (1, 8, 8)), ATTACK)
    optimizer = torch.optim.SGD(twin.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    for step in (0, 1):
        x, y, rows = batch()
        train_step(parts, Batch(x, y, rows), Controls.of(parts, step, RATE))
        loss = F.cross_entropy(twin(attacked(twin, x, y, rows, step), 1)[0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(net.conv.weight, twin.conv.weight, **CLOSE)
    torch.testing.assert_close(net.bn.weight[0], twin.norms[1].weight, **CLOSE)
    torch.testing.assert_close(net.bn.running_var[0], twin.norms[1].running_var, **CLOSE)


ATTACKS = {
    "trades": AttackConfig(eps_255=20, step_255=8, steps=2, start="gaussian", batch_norm="eval", objective="kl"),
    "n-fgsm": AttackConfig(eps_255=20, step_255=20, steps=1, start_scale=2, project=False),
    "fgsm-rs": AttackConfig(eps_255=20, step_255=25, steps=1),
    "l2, far start": AttackConfig(norm="l2", eps_255=60, step_255=40, steps=2, start_scale=2, project=False),
    "l2, gaussian": AttackConfig(norm="l2", eps_255=60, step_255=40, steps=2, start="gaussian"),
    "none": AttackConfig(steps=0, start="none"),
}


@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=["pytorch", "triton"])
@pytest.mark.parametrize("name", ATTACKS)
def test_the_step_attacks_as_the_attack_alone_does(small_net, name, kernels):
    settings, net, given = ATTACKS[name], convert_to_split_batch_norm(small_net, "shared"), batch()
    parts = parts_of(net, build_method(ATConfig(), net, (1, 8, 8)), settings, kernels=kernels)
    x, x_adv = attack(parts, given, Controls.of(parts, 4, 0.1))
    alone = convert_to_split_batch_norm(small_net, "shared")
    first, centre = pgd.start(settings, given.x, given.rows, 4, seed=SEED)
    expected = pgd.pgd(settings, lambda v: forward(alone, v, "adv", settings.batch_norm), centre, first, given.y)
    assert torch.equal(x, given.x)
    # The start's radius is a float32 product here, a float64 one there: 1e-8 of a pixel.
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-7)


def test_a_ball_of_radius_0_trains_both_branches_on_the_same_images(small_net):
    net = convert_to_split_batch_norm(small_net)
    method = build_method(ARATConfig(predictor=False, layers=("bn",)), net, (1, 8, 8)).double()
    parts = parts_of(net, method, AttackConfig(eps_255=0, steps=2))
    metrics = train_step(parts, batch(), Controls.of(parts, 0, 0.1))
    torch.testing.assert_close(metrics["adversarial_cross_entropy"], metrics["clean_cross_entropy"], **CLOSE)
    assert abs(float(metrics["invariance"])) < 1e-12


def test_the_published_start_trains_the_clean_branch_on_noisy_images(small_net):
    results = []
    for name in ("uniform", "published-code"):
        net = convert_to_split_batch_norm(small_net)
        method = build_method(ARATConfig(layers=("bn",)), net, (1, 8, 8)).double()
        parts = parts_of(net, method, AttackConfig(eps_255=20, steps=1, start=name))
        torch.manual_seed(1)
        before, x = net.bn.running_mean[0].clone(), batch()
        train_step(parts, x, Controls.of(parts, 0, 0.0))
        results.append((net.bn.running_mean[0] - 0.9 * before) * 10 - net.conv(x.x).detach().mean((0, 2, 3)))
    assert results[0].abs().max() < 1e-12 < results[1].abs().max()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_format_takes_a_step_with_finite_metrics_and_moves_all_parameters(precision):
    net = build_model("tiny", 3).train()
    method = build_method(ARATConfig(), net, (3, 8, 8))
    method.begin_epoch(torch.tensor(0.5))
    parts = parts_of(net, method, AttackConfig(steps=1), precision)
    parts.precision.scale.clamp_(max=2**8)  # fp16 would find a scale without overflow in its first steps
    before = [p.detach().clone() for p in parts.parameters]
    metrics = train_step(parts, batch(torch.float32, 3), Controls.of(parts, 0, 0.1))
    assert all(value.isfinite() for value in metrics.values())
    assert all(not torch.equal(p, was) for p, was in zip(parts.parameters, before, strict=True))
    assert all(p.grad is None for p in parts.parameters)


class Layouts(TorchDispatchMode):
    """Collects the operations that read images of one shape in two layouts, or write them in another than they read."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        images = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor) and t.dim() == 4]
        layouts: dict[torch.Size, set[tuple[int, ...]]] = {}
        for image in images:
            if min(image.shape) > 1:
                layouts.setdefault(image.shape, set()).add(image.stride())
        if any(len(strides) > 1 for strides in layouts.values()):
            self.mixed.add(str(func))
        return out


@pytest.mark.parametrize(("net", "optimizer"), [("tiny", "sgd"), ("tiny", "muon"), ("wrn-10-2", "sgd")])
def test_no_operation_of_a_step_meets_two_layouts(net, optimizer):
    """One that does reads element by element: on a CPU it takes forty times as long as another."""
    model = build_model(net, 10).to(memory_format=torch.channels_last).train()
    method = build_method(ARATConfig(gamma=GAMMA), model, (3, 32, 32)).to(memory_format=torch.channels_last).train()
    parts = parts_of(model, method, ATTACK, "bf16", optimizer=OptimizerConfig(name=optimizer))
    images = torch.rand(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    given = batch()._replace(x=images)
    with Layouts() as layouts:
        train_step(parts, given, Controls.of(parts, learning_rate=RATE))
    # The start of the attack, once a step: its noise is numbered row by row, in the order of the stored images. To see
    # weights as matrices reads nothing.
    assert layouts.mixed <= {"aten.add.Tensor", "aten.permute.default"}
