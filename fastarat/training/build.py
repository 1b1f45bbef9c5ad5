"""A training run at its beginning, built from a configuration."""

from dataclasses import replace
from functools import partial

import torch
from fastarat_kernels import philox
from fastarat_kernels.implementations import PYTORCH, TRITON, Kernels
from torch import nn

from fastarat.common.distributed import World
from fastarat.common.errors import UserError
from fastarat.config import Config
from fastarat.config.model import FOREIGN
from fastarat.data.images.dataset import Dataset, Images
from fastarat.data.images.stored import StoredImages
from fastarat.data.images.whole_sets import Form, decoded_now
from fastarat.data.loading.build import build_loader
from fastarat.data.loading.choose import Opened
from fastarat.data.loading.extra import open_extra
from fastarat.methods.method import Method
from fastarat.methods.registry import build_method
from fastarat.models.batch_norm import BatchNorm1d
from fastarat.models.foreign import check_image_sizes
from fastarat.models.padded_stem import pad_stem, unpad_stem
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import forward_context
from fastarat.training.choices import Choices
from fastarat.training.compiling.code_folder import keep_caches
from fastarat.training.compiling.compiled import MOST_UNROLLED, build_step, unrolled_size
from fastarat.training.compiling.together import meet
from fastarat.training.state import Training
from fastarat.training.step.precision import Dtype, Precision
from fastarat.training.step.train_step import Step, StepParts

IMPLEMENTATIONS = {"pytorch": PYTORCH, "triton": TRITON}


def kernels_of(choices: Choices) -> Kernels:
    """What computes the steps, kernel by kernel."""
    return replace(IMPLEMENTATIONS[choices.kernels].without(choices.without), name=choices.computed_by)


def start_training(config: Config, opened: Opened, choices: Choices, world: World) -> tuple[Training, Step]:
    """A run at step 0 and the step that trains it, computing with `choices`. Nothing is compiled before its first call.

    Raises `UserError` for settings that do not fit the images, or a folder of $TORCHINDUCTOR_CACHE_DIR that cannot be
    written.
    """
    kernels = kernels_of(choices)
    training = build_training(config, opened.dataset, world, dtype=choices.dtype, kernels=kernels, loader=opened.loader)
    if choices.stem_channels:
        pad_stems(training, choices.stem_channels)
    return training, step_of(training, choices)


def step_of(training: Training, choices: Choices) -> Step:
    """The step that trains it, as `choices` say how it runs. Raises `UserError` as `keep_caches` does."""
    if choices.compile != "eager":
        keep_caches()
    unroll = choices.unroll
    if unroll is None:
        unroll = unrolled_size(training.parts) <= MOST_UNROLLED
    together = partial(meet, choices.level, world) if (world := training.parts.world).control else None
    return build_step(training.parts, training.controls, choices.compile, unroll=unroll, meet=together)


def pad_stems(training: Training, num_channels: int) -> bool:
    """Let the first convolutions of net and method (a teacher is part of it) compute on so many channels where they
    can; whether any does now."""
    padded = [pad_stem(net, num_channels) for net in (training.parts.model, training.parts.method)]
    return any(padded)


def compute_plainly(training: Training, kernels: Kernels) -> None:
    """Let these kernels compute the steps of this training from now on, with the stem as it was; its tensors stay."""
    training.parts = training.parts.computed_with(kernels)
    training.loader.kernels = kernels
    for net in (training.parts.model, training.parts.method):
        _let_compute(net, kernels)
        unpad_stem(net)


def _let_compute(net: nn.Module, kernels: Kernels) -> None:
    if context := forward_context(net):
        context.kernels = kernels


def build_training(
    config: Config,
    dataset: Dataset,
    world: World,
    *,
    dtype: Dtype = "fp32",
    kernels: Kernels = PYTORCH,
    loader: str = "resident",
) -> Training:
    """A run at step 0, its net initialised from the seed alone. `loader`: resident for decoded images, else one that
    decodes. Raises `UserError` for settings that do not fit the images."""
    train, held_out = split_training_images(config, dataset)
    extra = open_extra(config.extra, dataset)
    if extra and loader != "resident":
        raise UserError(
            f"extra images are mixed in by the resident loader alone, not by {loader}: give --loader resident"
        )
    precision = Precision(dtype, world.device)
    model, method = _build_net(config, dataset, world, precision, kernels)
    parts = StepParts(
        model=model,
        method=method,
        attack=config.attack,
        optimizer=config.optimizer,
        precision=precision,
        world=world,
        kernels=kernels,
        seed=config.seed,
        bf16_gradients=config.bf16_gradients,
    )
    batches = build_loader(
        config,
        loader,
        train,
        max_value=dataset.max_value,
        world=world,
        dtype=precision.parameter_dtype,
        kernels=kernels,
        extra=extra.decoded_train if extra else None,
    )
    _check_snapshots(config, batches.steps_per_epoch)
    return Training(config=config, dataset=dataset, held_out=held_out, extra=extra, loader=batches, parts=parts)


def _check_snapshots(config: Config, steps_per_epoch: int) -> None:
    averaging = config.averaging
    first, last = (averaging.start_epoch - 1) * steps_per_epoch, config.epochs * steps_per_epoch
    if averaging.kind == "swa" and first // averaging.every_steps == last // averaging.every_steps:
        raise UserError(
            f"no snapshot would be averaged: steps {first + 1} to {last} hold no multiple of "
            f"{averaging.every_steps}; give a smaller --averaging.every-steps"
        )


def _build_net(
    config: Config, dataset: Dataset, world: World, precision: Precision, kernels: Kernels
) -> tuple[nn.Module, Method]:
    height, width, channels = dataset.image_shape
    torch.manual_seed(config.seed)
    model = build_model(config.model.name, len(dataset.classes), channels, config.method.batch_norm)
    _check_sizes(config, dataset, config.model.name, model)
    method = build_method(config.method, model, (channels, height, width))
    method.draw_by(config.seed, world.rank * (config.batch // world.size))
    if teacher := config.method.teacher_net:
        _check_sizes(config, dataset, teacher, method.get_submodule("teacher"))
    model.to(world.device, precision.parameter_dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    method.to(world.device, precision.parameter_dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for net in (model, method):  # a teacher is part of the method
        _let_compute(net, kernels)
        if context := forward_context(net):
            context.group = world.group if config.sync_bn else None
    for layer in method.modules():
        if isinstance(layer, BatchNorm1d) and config.sync_bn:
            layer.group = world.group
    return model.train(), method.train()


def _check_sizes(config: Config, dataset: Dataset, name: str, net: nn.Module) -> None:
    """Raise `UserError` if a net that is not our own does not take the images of the first epoch and of the last."""
    if FOREIGN.fullmatch(name):
        height, width, channels = dataset.image_shape
        start = config.size_in(1)
        check_image_sizes(net, name, channels, [(height, width), *([(start, start)] if start else [])])


def split_training_images(config: Config, dataset: Dataset) -> tuple[Images | StoredImages, Images]:
    """Training images, and those that evaluations during training look at.

    Validation images are split off by the seed, so that the test set never chooses a checkpoint; without
    them the test set is watched, and the last epoch is the result. Raises `UserError` as `num_training_images` does.
    """
    num_images, num_validation = len(dataset.train.labels), config.num_validation_images
    num_train = num_training_images(config, dataset)
    if not num_validation and config.num_train_images is None:
        return dataset.train, dataset.decoded_test
    order = philox.permutation(config.seed, 0, num_images).numpy()
    validation, train = order[:num_validation], order[num_validation : num_validation + num_train]
    if not num_validation:
        return dataset.train.take(train), dataset.decoded_test
    return dataset.train.take(train), _as_evaluated(dataset.train.take(validation), config, dataset)


def num_training_images(config: Config, dataset: Dataset) -> int:
    """How many images an epoch has. Raises `UserError` if there are too few for it, for evaluations or for a batch."""
    num_images, num_validation = len(dataset.train.labels), config.num_validation_images
    if not num_validation and not len(dataset.test.labels):
        raise UserError(f"{dataset.name} has no test images to watch: give --num-validation-images")
    num_train = num_images - num_validation if config.num_train_images is None else config.num_train_images
    if num_train + num_validation > num_images or num_train < 1:
        wanted = "some" if config.num_train_images is None else str(num_train)
        raise UserError(
            f"{wanted} training and {num_validation} validation images are more than the {num_images} there are: "
            "give fewer with --num-train-images or --num-validation-images"
        )
    if config.batch > num_train:
        raise UserError(f"batch {config.batch} is larger than the {num_train} training images: give a smaller --batch")
    return num_train


def _as_evaluated(images: Images | StoredImages, config: Config, dataset: Dataset) -> Images:
    """Images as evaluations see them: decoded, of one size."""
    if isinstance(images, Images):
        return images
    height, width, _ = dataset.image_shape
    return decoded_now(images, Form((width, height), config.augment.central_share), f"{dataset.name}, validation")
