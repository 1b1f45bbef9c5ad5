"""That all processes of a training have the same: settings, versions, data and images."""

from dataclasses import fields, replace

import torch

from fastarat.common.distributed import World, barrier, decided
from fastarat.common.errors import UserError
from fastarat.common.processes import is_first_here
from fastarat.common.version import __version__
from fastarat.config import Config
from fastarat.data.loading.choose import Opened, open_for_training
from fastarat.training.state import Training

SAME_ON_ALL = "give all machines the same command, and install the same versions on them"


def check_settings(config: Config, world: World) -> None:
    """Raise `UserError` unless all processes have the same settings and versions. Where the data lie is each machine's
    own: `check_alike` compares the images."""
    mine = settings_of(config)
    theirs = decided(lambda: mine, world)
    if other := [name for name, value in mine.items() if theirs.get(name) != value]:
        raise UserError(f"process {world.rank} has another {other[0]} than the first one: {SAME_ON_ALL}")


def settings_of(config: Config) -> dict[str, str]:
    """All that has to be the same in all processes, in words: settings but for where the data lie, and versions."""
    config = replace(config, data="", extra=replace(config.extra, data=None))
    own = {f.name: repr(getattr(config, f.name)) for f in fields(config)}
    return {**own, "version of fastarat": __version__, "version of torch": torch.__version__}


def opened_by_all(config: Config, world: World) -> Opened:
    """The first process opens the data, then the first of each other machine with the loader that it took, then the
    others: the first one of a machine may have to decode images that they then find decoded."""
    opened = open_for_training(config, world.device) if world.is_main else None
    loader = decided(lambda: opened.loader if opened else config.loader, world)
    with_its_loader = replace(config, loader=loader)
    if not world.is_main and is_first_here():
        opened = open_for_training(with_its_loader, world.device)
    barrier(world)
    return opened or open_for_training(with_its_loader, world.device)


def check_alike(training: Training, world: World) -> None:
    """Raise `UserError` unless all processes train on the same images: others would take other steps, or more."""
    dataset, extra, loader = training.dataset, training.extra, training.loader
    mine = (dataset.fingerprint, extra and extra.fingerprint, loader.num_images, loader.steps_per_epoch)
    if decided(lambda: mine, world) != mine:
        raise UserError(
            f"process {world.rank} finds other images in {dataset.name} than the first one: give all the same data"
        )
