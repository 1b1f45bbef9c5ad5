"""Training methods as people write them: plain modules, eager PyTorch, one forward for each half of the batch.

What fastarat's speed is compared with, by `python -m bench.throughput`. It shares the nets' architecture with fastarat
(so that both do the same mathematics) and none of the step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ladder.plain_losses import LOSSES, LossInputs, Net
from fastarat.attacks.pgd import GAUSSIAN
from fastarat.common.errors import UserError
from fastarat.config import Config
from fastarat.config.attack import AttackConfig
from fastarat.config.model import Branch
from fastarat.data.loading.loader import Batch
from fastarat.models.registry import architecture
from fastarat.training.compiling.compiler_options import right_code

Mode = Literal["default", "reduce-overhead", "max-autotune"]
Start = Callable[[Batch, AttackConfig, int], Tensor]
"""the attack's first iterate, of (batch, attack, step)"""


@dataclass
class Route:
    """What the batch-norms of one net share: the branch that the next forward takes."""

    branch: Branch = "adv"
    features: list[Tensor] | None = None
    """pooled features of the aligned layers, in order; None: not wanted"""


class BatchNorms(nn.Module):
    """An ordinary batch-norm for each branch; called as fastarat's: `norm(x, residual=None, relu=False)`."""

    def __init__(self, channels: int, route: Route, branches: tuple[Branch, ...]):
        super().__init__()
        self.norms = nn.ModuleDict({branch: nn.BatchNorm2d(channels) for branch in branches})
        self.route, self.aligned = route, False

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """The map [N, C, H, W], normalised by the branch that the route names, with a residual and a ReLU."""
        out = self.norms[self.route.branch](x)
        if self.aligned and self.route.features is not None:
            self.route.features.append(F.relu(out).mean((2, 3)))
        out = out if residual is None else out + residual
        return F.relu(out) if relu else out


class PlainNet(nn.Module):
    """A net with a set of ordinary batch-norms for each branch: `net(x, branch)` gives logits and features."""

    def __init__(self, name: str, num_classes: int, in_channels: int, *, branches: tuple[Branch, ...]):
        super().__init__()
        self.route = Route()
        cls, arguments = architecture(name, num_classes, in_channels)
        self.body = cls(norm=lambda channels: BatchNorms(channels, self.route, branches), **arguments)
        layer_of = getattr(self.body, "layer_of", lambda layer: layer)
        self.layers = tuple(layer_of(layer) for layer in self.body.aligned_layers)  # type: ignore[union-attr]
        for layer in self.layers:
            self.body.get_submodule(layer).aligned = True  # type: ignore[assignment]

    def forward(self, x: Tensor, branch: Branch, with_features: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Logits [N, K], and the aligned layers' features [N, d] if they are wanted."""
        self.route.branch, self.route.features = branch, [] if with_features else None
        logits = self.body(x)
        features, self.route.features = self.route.features or [], None
        return logits, features


def predictor(width: int) -> nn.Sequential:
    """What AR-AT maps adversarial features [N, d] by, before they are compared with the clean ones."""
    hidden = max(width // 4, 1)
    layers = nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width)
    return nn.Sequential(*layers)


@dataclass
class Plain:
    """A training in plain PyTorch: `step(batch)` attacks, and updates by torch.optim.SGD.

    Its AR-AT has a fixed weight w for the adversarial loss: measuring it is no part of a step.
    """

    config: Config
    net: PlainNet
    predictors: nn.ModuleList
    teacher: PlainNet | None
    """LBGAT's"""
    device: torch.device
    start: Start
    balance: float
    half: torch.dtype | None = None
    """autocast's format; None: float32"""
    fused_sgd: bool = False
    freeze: bool = False
    """the parameters take no gradient in the attack, so that a compiled backward computes none"""
    steps_done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        settings = self.config.optimizer
        if settings.name != "sgd":
            raise UserError(f"the plain step updates by SGD, not by {settings.name}: give --optimizer.name sgd")
        self.attacking = self.config.attack
        nets = (self.net, self.predictors, self.teacher)
        self.parameters = [parameter for net in nets if net is not None for parameter in net.parameters()]
        self.optimizer = torch.optim.SGD(
            self.parameters,
            settings.learning_rate,
            settings.momentum,
            weight_decay=settings.weight_decay,
            fused=self.fused_sgd,
        )
        self.forward: Net = self.net
        self.teach: Net | None = self.teacher

    def compile(self, mode: Mode) -> None:
        """Run the nets by torch.compile from now on."""
        # torch.compile takes a mode or options, of which a mode is a name.
        options = {**torch._inductor.list_mode_options(mode), **right_code(self.device.type)}
        self.forward = torch.compile(self.net, dynamic=False, options=options)
        if self.teacher is not None:
            self.teach = torch.compile(self.teacher, dynamic=False, options=options)

    def autocast(self) -> torch.autocast:
        """The context of forwards and losses."""
        return torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=self.half is not None)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch; the loss and its terms (scalars)."""
        x_adv = self.attack(batch)
        with self.autocast():
            losses = self.losses(batch.x, x_adv, batch.y)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        self.optimizer.step()
        self.steps_done += 1
        return {name: value.detach() for name, value in losses.items()}

    def attack(self, batch: Batch) -> Tensor:
        """PGD in Linf on the adversarial branch, as the configuration has it."""
        attack, x, y = self.attacking, batch.x, batch.y
        self.net.train(attack.batch_norm == "train")
        x_adv = self.start(batch, attack, self.steps_done)
        self._require_gradients(not self.freeze)
        target = None
        if attack.objective == "kl":
            with torch.no_grad(), self.autocast():
                target = self.forward(x, "adv")[0].softmax(1)
        for _ in range(attack.steps):
            x_adv = x_adv.detach().requires_grad_()
            with self.autocast():
                logits = self.forward(x_adv, "adv")[0]
                if target is None:
                    loss = F.cross_entropy(logits, y)
                else:
                    loss = F.kl_div(logits.log_softmax(1), target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            moved = x_adv.detach() + attack.step_size * gradient.sign()
            if attack.project:
                moved = torch.min(torch.max(moved, x - attack.eps), x + attack.eps)
            x_adv = moved.clamp(0, 1)
        self._require_gradients(True)
        self.net.train()
        return x_adv.detach()

    def _require_gradients(self, wanted: bool) -> None:
        if self.freeze:
            for parameter in self.parameters:
                parameter.requires_grad_(wanted)

    def losses(self, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The loss and its terms."""
        method = self.config.method
        inputs = LossInputs(self.forward, method, self.predictors, self.teach, self.balance)
        return LOSSES[method.name](inputs, x, x_adv, y)


def fresh_start(batch: Batch, attack: AttackConfig, step: int) -> Tensor:
    """By PyTorch's own generator."""
    if attack.start == "none":
        return batch.x
    if attack.start == "gaussian":
        return batch.x + GAUSSIAN * torch.randn_like(batch.x)
    radius = attack.start_scale * attack.eps
    return batch.x + torch.empty_like(batch.x).uniform_(-radius, radius)
