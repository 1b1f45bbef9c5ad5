"""One state of a training, measured: the same batches and test images for every state, so that states compare."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fastarat.analysis.batches import attacking, measure_batch
from fastarat.analysis.conflict import DEFINITIONS as CONFLICTS
from fastarat.analysis.features import measure_features
from fastarat.analysis.layers import Values, mean, mean_over, mean_over_shared, observe
from fastarat.analysis.perturbations import STEPS, attack_images, pgd_20
from fastarat.common.errors import UserError
from fastarat.config.attack import AttackConfig
from fastarat.data.images.dataset import subset
from fastarat.data.loading.loader import Batch
from fastarat.training.state import Training


@dataclass(frozen=True)
class View:
    """What every state of a training is looked at with."""

    training: Training
    aligned: tuple[str, ...]
    """the method's aligned layers, or the net's own choice"""
    layers: tuple[str, ...]
    """those whose features are looked at"""
    x: Tensor
    """test images [N, C, H, W] in [0, 1]"""
    y: Tensor
    """labels, int64 [N]"""
    attack: AttackConfig
    """on test images"""
    num_batches: int
    rows: int
    """how many images of a batch training normalised together, in one process or in all: so many are measured"""
    seed: int

    @classmethod
    def of(cls, training: Training, num_images: int, num_batches: int, seed: int) -> "View":
        """Random test images by the seed; a training's nets begin to record their layers' features here. Raises
        `UserError` for more batches than an epoch has."""
        model, average, config = training.parts.model, training.average, training.config
        aligned = tuple(config.method.layers or getattr(model, "aligned_layers", ()))
        if num_batches > training.loader.steps_per_epoch:
            raise UserError(f"--batches {num_batches}: an epoch has {training.loader.steps_per_epoch}, give fewer")
        layers = observe(model, aligned)
        if average:
            observe(average.model, aligned)
        images, device = subset(training.dataset.decoded_test, num_images, seed), training.parts.world.device
        x = torch.tensor(images.images, device=device).permute(0, 3, 1, 2) / training.dataset.max_value
        y = torch.tensor(images.labels, device=device)
        attack = pgd_20(config.attack.norm, config.eps_255)
        x = x.to(training.parts.precision.parameter_dtype, memory_format=torch.channels_last)
        together = config.batch if config.sync_bn else config.batch // config.num_processes
        return cls(training, aligned, layers, x, y, attack, num_batches, together, seed)

    @property
    def work(self) -> int:
        """How much a state costs, about, in forward and backward passes of an image."""
        steps = attacking(self.training)[0].attack.steps
        return self.num_batches * self.rows * (steps + 6) + len(self.x) * (STEPS + 1)

    def measure(self, advance: Callable[[float], None]) -> dict[str, Any]:
        """Every measure of the state that the training holds, by layer, and their means over layers (see `mean`).

        `advance` is told of `work` done.
        """
        model = self.training.deployed
        values: dict[str, Values | None] = self.on_training_batches(advance)
        batch = self.training.config.evaluation.batch
        sizes = {"seed": self.seed, "batch": batch}
        attacked = attack_images(
            model, self.x, self.y, self.attack, **sizes, advance=lambda n: advance(n * (STEPS + 1))
        )
        values |= measure_features(model, self.x, attacked.x_adv, self.layers, batch=batch)
        means = {name: self.mean(name, layers) if layers else None for name, layers in values.items()}
        epoch = self.training.step / self.training.loader.steps_per_epoch
        return {"step": self.training.step, "epoch": epoch, "means": means, "layers": values}

    def mean(self, name: str, layers: Values) -> float | None:
        """A conflict's mean is over convolutions and linear layers, any other over the aligned layers."""
        model = self.training.parts.model
        return mean_over_shared(layers, model) if name in CONFLICTS else mean_over(layers, model, self.aligned)

    def on_training_batches(self, advance: Callable[[float], None]) -> dict[str, Values | None]:
        """Conflicts and statistics' distances, averaged over training batches that no training sees."""
        training, measured = self.training, []
        steps = attacking(training)[0].attack.steps
        for i, batch in enumerate(
            islice(training.loader.batches(training.config.epochs + 2 + self.seed), self.num_batches)
        ):
            batch = Batch(*(tensor[: self.rows] for tensor in batch))
            measured.append(measure_batch(training, batch, i, self.aligned))
            advance(self.rows * (steps + 6))
        first, *_ = measured
        return {
            name: {layer: mean(one[name][layer] for one in measured) for layer in layers}
            for name, layers in first.items()
        }
