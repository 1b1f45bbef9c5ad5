"""Training in plain PyTorch as the ladder times it: fastarat's initial weights, and its state by fastarat's names."""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.ladder.plain import BatchNorms, Mode, Plain, PlainNet, fresh_start, predictor
from bench.ladder.plain_data import Source, resident_batches, worker_batches
from fastarat.attacks import pgd
from fastarat.common.distributed import World
from fastarat.config.attack import AttackConfig
from fastarat.config.method import LBGATConfig
from fastarat.data.loading.loader import Batch
from fastarat.models.split_batch_norm import BRANCHES
from fastarat.training.build import build_training
from fastarat.training.state import Training
from fastarat.training.step.precision import Dtype
from fastarat.training.tuning.subject import (
    BALANCE,
    State,
    StepSetting,
    Subject,
    adversarial_statistics,
    state_of,
    warm_statistics,
)

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PlainForm:
    """How a plain training runs."""

    workers: bool = False
    """PIL in worker processes feeds it; else a resident set"""
    deterministic: bool = False
    """cuDNN is deterministic and times no algorithms, as published code has it"""
    channels_last: bool = True
    half: Dtype | None = None
    mode: Mode | None = None
    """of torch.compile; None: eager"""


class PlainSubject(Subject):
    """`bench.ladder.plain`'s training with fastarat's initial weights."""

    def __init__(self, setting: StepSetting, form: PlainForm):
        self.setting, self.form = setting, form
        start = build_training(setting.config, setting.dataset, World(setting.device))
        self.layout = torch.channels_last if form.channels_last else torch.contiguous_format
        if setting.config.attack.batch_norm == "eval":
            warm_statistics(start)
        self.plain = _plain(setting, form, start)
        _copy(state_of(start), self._named_parameters())
        _copy(adversarial_statistics(start), self.statistics())
        for net in self._nets.values():
            net.to(memory_format=self.layout)  # type: ignore[call-overload]
        if form.mode is not None:
            self.plain.compile(form.mode)
        self.feed: Generator[Batch, None, None] | None = None

    def step(self, batch: Batch) -> dict[str, Tensor]:
        return self.plain.step(batch._replace(x=batch.x.contiguous(memory_format=self.layout)))

    def batches(self) -> Iterator[Batch]:
        config, dataset, device = self.setting.config, self.setting.dataset, self.setting.device
        self.plain.start = fresh_start
        source = Source(dataset.decoded_train, dataset.max_value, config.augment)
        if self.form.workers:
            self.feed = worker_batches(source, config.batch, device)
        else:
            self.feed = resident_batches(source, config.batch, device, layout=self.layout)
        return self.feed

    def scale_attack(self, radius: float, step: float) -> None:
        attack = self.setting.config.attack
        self.plain.attacking = replace(
            attack, eps_255=radius * attack.known_eps_255, step_255=step * attack.known_step_255
        )

    def flags(self) -> AbstractContextManager[object]:
        if not self.form.deterministic:
            return super().flags()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True)

    def _named_parameters(self) -> State:
        named: State = {f"predictors.{name}": p for name, p in self.plain.predictors.named_parameters()}
        for prefix, net in self._nets.items():
            named |= {prefix + _plain_name(name): p for name, p in net.body.named_parameters()}
        return named

    @property
    def _nets(self) -> dict[str, PlainNet]:
        """By what their parameters' names begin with."""
        teacher = self.plain.teacher
        return {"": self.plain.net} | ({"teacher.": teacher} if teacher is not None else {})

    def parameters(self) -> State:
        return {name: parameter.detach() for name, parameter in self._named_parameters().items()}

    def statistics(self) -> State:
        found: State = {}
        for name, layer in self.plain.net.body.named_modules():
            if isinstance(layer, BatchNorms):
                norm = layer.norms["adv"]
                found |= {f"{name}.mean": norm.running_mean, f"{name}.variance": norm.running_var}  # type: ignore[dict-item]
        return found

    def close(self) -> None:
        if self.feed is not None:
            self.feed.close()


def _plain(setting: StepSetting, form: PlainForm, start: Training) -> Plain:
    config, channels = setting.config, setting.dataset.image_shape[2]
    branches = BRANCHES if config.method.name == "arat" else ("adv",)
    net = PlainNet(config.model.name, len(setting.dataset.classes), channels, branches=branches)
    widths = [layers[0].in_features for layers in getattr(start.parts.method, "predictors", ())]
    teacher = None
    if isinstance(config.method, LBGATConfig):
        teacher = PlainNet(config.method.teacher, len(setting.dataset.classes), channels, branches=branches)
        teacher.to(setting.device).train()

    def same_start(batch: Batch, attack: AttackConfig, step: int) -> Tensor:
        """fastarat's own, by which both can be compared."""
        return pgd.start(attack, batch.x, batch.rows, step, seed=config.seed)[0]

    return Plain(
        config,
        net.to(setting.device).train(),
        nn.ModuleList(predictor(width) for width in widths).to(setting.device).train(),
        teacher,
        setting.device,
        same_start,
        BALANCE,
        HALF.get(form.half or ""),
        fused_sgd=form.mode is not None,
        freeze=form.mode is not None,
    )


def _plain_name(name: str) -> str:
    """`bn1.norms.adv.weight` as fastarat's sets are named: `bn1.weight.adv`."""
    head, _, tail = name.rpartition(".norms.")
    if not head:
        return name
    branch, _, kind = tail.partition(".")
    return f"{head}.{kind}.{branch}"


@torch.no_grad()
def _copy(source: State, target: State) -> None:
    assert source.keys() == target.keys(), source.keys() ^ target.keys()
    for name, value in target.items():
        value.copy_(source[name])
