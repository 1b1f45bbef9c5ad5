"""The deployed model of a run on its test images: evaluated, and what it got right kept image by image."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastarat.common.console import notice, progress
from fastarat.common.errors import UserError, WorkError, first_line
from fastarat.config.evaluation import EvaluationSettings
from fastarat.data.images.classes import in_order_of
from fastarat.data.images.dataset import subset
from fastarat.data.open import open_for_evaluation
from fastarat.evaluation.evaluate import as_images, evaluate
from fastarat.evaluation.outcomes import Outcomes, keep, outcomes_of, weights_digest
from fastarat.evaluation.result import Evaluation
from fastarat.models.batch_norm import to_mode
from fastarat.runs.deployed import images_of, load_deployed


@dataclass(frozen=True)
class EvaluatedRun:
    """A run's deployed model, the images it was evaluated on, and the result."""

    model: nn.Module
    """on the device, in eval mode"""
    images: Tensor
    """[N, C, H, W]: bytes, or floats in [0, 1]"""
    labels: Tensor
    """int64 [N]"""
    evaluation: Evaluation
    outcomes: Outcomes


def threat_of(run: Path, attack: str = "pgd", steps: int = 20) -> EvaluationSettings:
    """The settings that evaluate a run under its own threat model. Raises `UserError` if it has no deployed weights."""
    if not os.path.lexists(run / "model.safetensors"):  # of a broken link the next line says so
        raise UserError(f"{run} has no model.safetensors: it has not finished, or is no run directory")
    _, description = load_deployed(run)
    return EvaluationSettings(attack, norm=description.norm, eps=description.eps_255 / 255, steps=steps)


def evaluate_run(
    run: Path, settings: EvaluationSettings, num_images: int, device: torch.device, data: str | None = None
) -> EvaluatedRun:
    """Evaluate on the test images that `fastarat eval RUN --num-images N` takes, and keep the outcomes in the run.

    `data`: where the images lie, if not where the run found them. Raises `UserError` where there are none.
    """
    weights = weights_digest(run)  # before they are read: a training that goes on may deploy others meanwhile
    model, description = load_deployed(run)
    dataset = open_for_evaluation(
        data or images_of(run, description), description.image_size, description.central_share
    )
    dataset = in_order_of(dataset, description.classes, str(run), "give the data set it was trained on")
    if not len(dataset.test.labels):
        raise UserError(f"{dataset.name} has no test images")
    chosen = subset(dataset.decoded_test, num_images, settings.seed)
    images, labels = as_images(chosen, dataset.max_value)
    model = to_mode(model.to(device), training=False)
    with progress(f"evaluating {run}", len(labels)) as advance:
        evaluation = evaluate(model, images, labels, settings, device=device, advance=advance)
    outcomes = outcomes_of(evaluation, settings, dataset, chosen, weights)
    try:
        keep(run, outcomes)
    except (OSError, WorkError) as error:
        notice(f"{run}: what each image came to is not kept for comparisons ({first_line(error)})")
    return EvaluatedRun(model, images, labels, evaluation, outcomes)
