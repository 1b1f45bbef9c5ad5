"""Tune a recipe's step to this machine: what `fastarat tune` does."""

from dataclasses import replace

import numpy as np
import torch

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.console import notice, progress
from fastarat.common.distributed import join_world
from fastarat.common.errors import Interrupted, UserError
from fastarat.common.signals import number_of
from fastarat.config import Config
from fastarat.config.data import AugmentConfig, ExtraConfig
from fastarat.config.training import AveragingConfig, ScheduleConfig
from fastarat.data.images.dataset import Dataset, Images
from fastarat.data.loading.choose import open_for_training
from fastarat.training.build import num_training_images
from fastarat.training.choices import choose_device
from fastarat.training.tuning.gate import LEARNING_RATE, SCALES
from fastarat.training.tuning.kept import Tuned, keep, kept
from fastarat.training.tuning.search import try_all
from fastarat.training.tuning.subject import StepSetting
from fastarat.training.tuning.trial import Tried


def tune(config: Config, *, again: bool = False) -> Tuned:
    """The candidates of this configuration's step, tried now, or (unless `again`) when they were last.

    Raises `UserError` for what can be known before, `WorkError` if the plainest form of the step is refused, and
    `Interrupted` if a signal ends it: what was tried until then is kept, and the next call goes on with the others.
    """
    if config.num_processes > 1:
        raise UserError("tune times one process: leave --gpus and --procs out")
    device = choose_device(config, ChoiceLog())
    known = kept(config, device)
    is_whole = known is not None and known.finished
    if known and is_whole and not again:
        notice("this was tuned before on this machine: --again tries anew")
        return known
    world = join_world(device)
    dataset = open_for_training(config, world.device).dataset
    num_training_images(config, dataset)  # refuses what a training refuses
    num_images = len(dataset.train.labels) - config.num_validation_images
    before = known.tried if known and not again else []
    if before:
        notice(f"going on: {len(before)} forms were tried before; --again tries all anew")
    num_kept, can_be_kept = len(before), True

    def keep_so_far(tried: list[Tried]) -> None:
        nonlocal num_kept, can_be_kept
        # A whole table stays until there is another one.
        if can_be_kept and not is_whole and len(tried) > num_kept:
            can_be_kept = keep(config, device, Tuned(num_images, tried, finished=False)) is not None
            num_kept = len(tried) if can_be_kept else num_kept

    try:
        with progress(f"tuning {config.recipe}", 1) as advance:
            tried, kernels = try_all(setting_of(config, dataset, world.device), advance, before, keep_so_far)
    except KeyboardInterrupt as error:
        goes_on = f"{num_kept} forms are kept: the same command{', without --again,' * again} goes on"
        stays = "what was tuned before stays" if is_whole else goes_on if num_kept else "nothing was kept yet"
        raise Interrupted(f"tuning {config.recipe} was interrupted; {stays}", number_of(error)) from error
    tuned = Tuned(num_images, tried, kernels)
    if can_be_kept:  # else it is said
        keep(config, device, tuned)
    return tuned


def setting_of(config: Config, dataset: Dataset, device: torch.device) -> StepSetting:
    """The step of `config` on random images of the data set's shape; how images come to it is not tuned."""
    changed = replace(
        config,
        size=None,
        loader="resident",
        num_train_images=None,
        num_validation_images=0,
        augment=AugmentConfig(),
        extra=ExtraConfig(),
        averaging=AveragingConfig(),
        schedule=ScheduleConfig("constant"),
        optimizer=replace(config.optimizer, learning_rate=LEARNING_RATE),
    )
    rng, num_classes = np.random.default_rng(0), len(dataset.classes)
    count = len(SCALES) * config.batch
    pixels = rng.integers(0, dataset.max_value + 1, (count, *dataset.image_shape), dtype=np.uint8)
    images = Images(pixels, rng.integers(0, num_classes, count))
    return StepSetting(changed, Dataset("random", images, images, dataset.classes, dataset.max_value, ""), device)
