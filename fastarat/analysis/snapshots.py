"""The states that a run has kept, and the training that they are put into."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastarat.common.console import command
from fastarat.common.distributed import World
from fastarat.common.errors import UserError, first_line
from fastarat.config import Config
from fastarat.data.images.dataset import other_images
from fastarat.data.loading.choose import open_for_training
from fastarat.runs.checkpoint import load_checkpoint
from fastarat.runs.run import Run
from fastarat.training.build import start_training
from fastarat.training.choices import Choices
from fastarat.training.state import Training, in_order_of_state


@dataclass(frozen=True)
class Kept:
    """A file with a state of the net, and what it is: `epoch N`, `best` or `last`."""

    name: str
    path: Path


def kept_states(run: Run, epochs: Sequence[int] = ()) -> list[Kept]:
    """The snapshots of a run (of `epochs` alone, if any are given), then its best and last checkpoint.

    Raises `UserError` where there is no checkpoint, or no snapshot of such an epoch.
    """
    if run.path.is_file():
        raise UserError(f"{run.path} is a file: analyze looks at a training, give a run's directory")
    run.config()
    if not run.has_checkpoint():
        resume = command("train", "--resume", run.path)
        raise UserError(f"{run.path} has no checkpoint to analyse: train it with {resume}")
    snapshots = run.snapshots()
    missing = sorted(set(epochs) - set(snapshots))
    if missing:
        there = f"it has {', '.join(map(str, snapshots))}" if snapshots else "--checkpoint.history N keeps some"
        raise UserError(f"{run.path} has no snapshot of epoch {missing[0]}: {there}")
    kept = [Kept(f"epoch {epoch}", path) for epoch, path in snapshots.items() if not epochs or epoch in epochs]
    if os.path.lexists(run.best_file):
        kept.append(Kept("best", run.best_file))
    return [*kept, Kept("last", run.checkpoint("last"))]


def reconstruct(config: Config, data: str | None, device: torch.device, checkpoint: Path | None = None) -> Training:
    """The training of a configuration on one process, in float32 (float64 where it trained so), in plain PyTorch.

    `data`: where the images lie now, if elsewhere. Classes are in the order that those of `checkpoint` have. Raises
    `UserError` for images that are not there, or do not fit.
    """
    config = replace(config, data=data or config.data)
    try:
        opened = open_for_training(replace(config, loading=replace(config.loading, decode="cpu")), device)
    except UserError as error:
        raise UserError(f"{error}: name with --data where this run's images lie now") from error
    if checkpoint is not None:
        opened = replace(opened, dataset=in_order_of_state(opened.dataset, load_checkpoint(checkpoint), checkpoint))
    choices = Choices(device.type, "fp64" if config.dtype == "fp64" else "fp32")
    return start_training(config, opened, choices, World(device))[0]


def load(training: Training, kept: Kept) -> None:
    """Put a state's weights, statistics and average into the training. Raises `UserError` for what does not fit it."""
    state = load_checkpoint(kept.path)
    if other_images(training.dataset, state.get("fingerprint"), state.get("labels_fingerprint")):
        raise UserError(f"{kept.path} was trained on other images than {training.config.data} holds: give its --data")
    try:
        training.parts.model.load_state_dict(state["model"])
        training.parts.method.load_state_dict(state["method"])
        if training.average:
            training.average.load_state_dict(state["average"])
        training.step, training.epoch = state["step"], state["epoch"]
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"{kept.path} does not fit the run's config.json: {first_line(error)}") from error
