"""What the gate compares and turns time: a training that feeds itself, with its state by common names."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from fastarat_kernels.implementations import PYTORCH
from torch import Tensor

from fastarat.common.distributed import World
from fastarat.config import Config
from fastarat.data.images.dataset import Dataset
from fastarat.data.loading.choose import Opened
from fastarat.data.loading.loader import Batch
from fastarat.models.split_batch_norm import BRANCHES, SplitBatchNorm2d, forward, forward_context
from fastarat.training.build import start_training
from fastarat.training.choices import Choices, threads
from fastarat.training.compiling.compiled import StepBySize
from fastarat.training.state import Training

BALANCE = 0.6
"""w, the weight of AR-AT's adversarial loss; other than 1/2, so that a swap of the two would show"""
State = dict[str, Tensor]


@dataclass(frozen=True)
class StepSetting:
    """What all steps that are compared share."""

    config: Config
    dataset: Dataset
    device: torch.device


def give_back_memory() -> None:
    """Give back what a subject held that is gone: its graphs and its tensors refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Subject(ABC):
    """A training in one form. Its first step compiles what is compiled."""

    @abstractmethod
    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch: the loss and its terms (scalars, overwritten by the next step)."""

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Its own batches, without end."""

    @abstractmethod
    def parameters(self) -> State:
        """All weights by the names that every subject uses."""

    @abstractmethod
    def statistics(self) -> State:
        """The adversarial branch's running means and variances."""

    @abstractmethod
    def scale_attack(self, radius: float, step: float) -> None:
        """Make the attack's radius and step these multiples of the configuration's."""

    def is_finite(self) -> bool:
        """Whether all weights are finite: other numbers are computed at another speed. Waits for the device."""
        return all(bool(value.isfinite().all()) for value in self.parameters().values())

    def flags(self) -> AbstractContextManager[object]:
        """The state of PyTorch's global switches that the subject runs in."""
        # Shapes never change: cuDNN times its algorithms once.
        return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)

    def close(self) -> None:  # noqa: B027  most have nothing beside them
        """End what runs beside it."""


class FastaratSubject(Subject):
    """fastarat's own training."""

    def __init__(self, setting: StepSetting, choices: Choices):
        opened = Opened(setting.dataset, "resident", "the fastest")
        self.choices = choices
        self.training, self.run = start_training(setting.config, opened, choices, World(setting.device))
        self.training.parts.method.begin_epoch(torch.tensor(BALANCE))
        if setting.config.attack.batch_norm == "eval":
            warm_statistics(self.training)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        dtype = self.training.parts.precision.parameter_dtype
        return self.training.advance(self.run, batch._replace(x=batch.x.to(dtype)))

    def batches(self) -> Iterator[Batch]:
        loader, epoch = self.training.loader, 0
        while True:
            epoch += 1
            yield from loader.batches(epoch)

    def scale_attack(self, radius: float, step: float) -> None:
        attack, controls = self.training.config.attack, self.training.controls
        controls.eps.fill_(radius * attack.eps)
        controls.step_size.fill_(step * attack.step_size)

    def parameters(self) -> State:
        return {name: value.detach() for name, value in state_of(self.training).items()}

    def statistics(self) -> State:
        return adversarial_statistics(self.training)

    @contextmanager
    def flags(self) -> Iterator[None]:
        with super().flags(), threads(self.choices.threads):
            yield

    def close(self) -> None:
        if isinstance(self.run, StepBySize):
            self.run.close()


def state_of(training: Training) -> State:
    """What fastarat trains, every branch of a batch-norm for itself."""
    found: State = {}
    for owner in (training.parts.model, training.parts.method):
        split = {name for name, layer in owner.named_modules() if isinstance(layer, SplitBatchNorm2d)}
        for name, parameter in owner.named_parameters():
            if name.rpartition(".")[0] in split and parameter.requires_grad:
                branches = BRANCHES[-len(parameter) :]
                found |= {f"{name}.{branch}": parameter[i] for i, branch in enumerate(branches)}
            elif parameter.requires_grad:
                found[name] = parameter
    return found


def adversarial_statistics(training: Training) -> State:
    """The running means and variances by which an attack normalises, by layer."""
    found: State = {}
    for name, layer in training.parts.model.named_modules():
        if isinstance(layer, SplitBatchNorm2d):
            found |= {f"{name}.mean": layer.running_mean[-1], f"{name}.variance": layer.running_var[-1]}
    return found


@torch.no_grad()
def warm_statistics(training: Training) -> None:
    """Those of the first batch: by a new net's mean of 0 and variance of 1 an attack would find nothing to climb."""
    model, batch = training.parts.model, next(training.loader.batches(1))
    context = forward_context(model)
    assert context is not None
    before = context.kernels, context.momentum
    context.kernels, context.momentum = PYTORCH, 1.0
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        forward(
            model, torch.cat([batch.x, batch.x]), "both" if training.config.method.name == "arat" else "adv", "train"
        )
    context.kernels, context.momentum = before
