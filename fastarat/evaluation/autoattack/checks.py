"""What can be known before AutoAttack's attacks: whether model, images and settings are what it needs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastarat.attacks.attack import require_classes
from fastarat.attacks.registry import ATTACKS
from fastarat.common.errors import UserError, unknown
from fastarat.config.evaluation import STANDARD, EvaluationSettings
from fastarat.evaluation.autoattack.prepared_model import one_line
from fastarat.evaluation.autoattack.state import Task, as_numbers
from fastarat.models.batch_norm import switchable

SQUARE_L2_LEAST_SIDE = 5
# How far an image's logits may move, as a part of their length, when another image of its batch changes.
OF_THE_IMAGE_ALONE = 1e-3


def check_images(images: Tensor) -> None:
    """Raise `UserError` unless these are images [N, C, H, W], N >= 1, bytes or numbers in [0, 1]."""
    if images.ndim != 4:
        raise UserError(f"images have the shape {list(images.shape)}: give [N, C, H, W]")
    if not len(images):
        raise UserError("there are no images to evaluate: give one or more")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UserError(f"images are {images.dtype}: give bytes, or floats in [0, 1]")
    not_a_number = int(images.isnan().sum()) if images.is_floating_point() else 0
    if not_a_number:
        raise UserError(f"{not_a_number} of {images.numel()} pixels are NaN: leave out these images, or mend them")
    if images.dtype != torch.uint8 and not (images.min() >= 0 and images.max() <= 1):
        least, most = float(images.min()), float(images.max())
        fix = "leave out their normalisation and put it into the model"
        if least >= 0 and 2 < most <= 255:
            fix = "divide them by 255"
        raise UserError(f"images lie in [{least:.6g}, {most:.6g}], not in [0, 1]: {fix}")


def check_model(
    module: nn.Module, images: Tensor, num_classes: int | None = None, *, attacks: Sequence[str] = STANDARD
) -> None:
    """Raise `UserError` unless `module`, in eval mode, maps `images` (as `autoattack` takes them) to logits, each by
    its image alone, of which there is a gradient if one of `attacks` follows it.

    The first two images are tried, on the device where they are. `num_classes` None: any.
    """
    _check_mode(module)
    _check_statistics(module)
    check_images(images)
    with torch.inference_mode(False), torch.enable_grad():
        x = as_numbers(images[:2]).clone().requires_grad_()  # a copy, and one that cannot be changed in place
        logits = _called(module, x)
        _check_shape(logits, len(x), num_classes)
        if any(ATTACKS[name].follows_gradient for name in attacks):
            _check_gradient(logits, x)
    _check_neighbours(module, x.detach(), logits.detach())


def _called(module: nn.Module, x: Tensor) -> Any:
    try:
        return module(x)
    except (Exception, SystemExit) as error:  # a net of others may raise anything
        raise UserError(f"the model takes no images {list(x.shape)}: {one_line(error)}") from error


def _check_mode(module: nn.Module) -> None:
    wrong = {part for part in switchable(module) if part.training}
    training = [name or type(module).__name__ for name, part in module.named_modules() if part in wrong]
    if training:
        raise UserError(f"the model is in train mode (in {training[0]}): call its eval() before it is attacked")


def _check_statistics(module: nn.Module) -> None:
    """Raise `UserError` for a batch-norm that normalises by the batch even in eval mode."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and (part.running_mean is None or part.running_var is None):
            raise UserError(
                f"the batch-norm {name!r} has no running statistics and uses those of the batch, so that what is found "
                "for an image depends on the others: train it with track_running_stats=True"
            )


@torch.no_grad()
def _check_neighbours(module: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Raise `UserError` if what `module` says of the first of two images changes with the second.

    A module that differs from itself is no case of this: it is warned of as randomised.
    """
    if len(x) < 2:
        return
    first, again = logits[0], _called(module, x.clone())[0]
    beside_another = _called(module, torch.cat([x[:1], 1 - x[1:]]))[0]
    room = OF_THE_IMAGE_ALONE * first.norm()
    if (again - first).norm() <= room / 10 and (beside_another - first).norm() > room:
        raise UserError(
            "what the model says of an image depends on the other images of its batch, as batch statistics make it: "
            "let it look at each image by itself"
        )


def _check_shape(logits: Any, size: int, num_classes: int | None = None) -> None:
    """Raise `UserError` unless these are logits of `size` images, of `num_classes` classes (None: any)."""
    right = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == size
    if not right or num_classes not in (None, logits.shape[1]):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        classes = "classes" if num_classes is None else num_classes
        raise UserError(f"the model returns {shape} for {size} images, not logits [{size}, {classes}]")
    if not logits.is_floating_point():
        raise UserError(f"the model returns {logits.dtype} numbers: give logits, before any argmax")


def _check_gradient(logits: Tensor, x: Tensor) -> None:
    """Raise `UserError` unless `logits` can be differentiated by the images `x`; a gradient of zero is one."""
    reason = "its forward runs under no_grad, detaches, or does not look at them"
    try:
        if logits.requires_grad and torch.autograd.grad(logits.sum(), x, allow_unused=True)[0] is not None:
            return
    except RuntimeError as error:
        reason = one_line(error)
    raise UserError(f"the model has no gradient by its images ({reason}): give it one, or square, which needs none")


def check_settings(settings: EvaluationSettings) -> None:
    """Raise `UserError` for settings that cannot be evaluated."""
    if problems := settings.problems():
        raise UserError("; ".join(problems))
    check_attacks(settings.names)


def check_labels(images: Tensor, labels: Tensor) -> None:
    """Raise `UserError` unless these are images that can be evaluated, and a number for each."""
    check_images(images)
    are_numbers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.shape != images.shape[:1] or not are_numbers:
        raise UserError(f"labels are {labels.dtype} {list(labels.shape)}: give a class number for each image")


def check_task(task: Task) -> None:
    """Raise `UserError` for settings, images or labels that cannot be evaluated."""
    check_settings(task.settings)
    check_labels(task.images, task.labels)
    square_in_l2 = "square" in task.settings.names and task.settings.norm == "l2"
    if square_in_l2 and min(task.images.shape[2:]) < SQUARE_L2_LEAST_SIDE:
        raise UserError("square in L2 needs images of 5 x 5 pixels or more: leave it out of the attacks")


def check_attacks(names: Sequence[str]) -> None:
    """Raise `UserError` for a name that is no attack's, or that comes twice."""
    if tuple(names) == ("",):
        raise UserError("no attack is named: give autoattack, pgd or others, or none for clean accuracy alone")
    for name in names:
        if name not in ATTACKS:
            raise unknown("attack", name, ("autoattack", *ATTACKS))
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise UserError(f"attack {twice[0]} is named twice: give each once")


def check_logits(logits: Tensor, size: int, task: Task) -> None:
    """Raise `UserError` unless these are logits of `size` images, of enough classes for labels and attacks."""
    _check_shape(logits, size)
    num_classes = logits.shape[1]
    for name in task.settings.names:
        if least := ATTACKS[name].fewest_classes:
            require_classes(name, num_classes, task.settings.targets, least)
    if num_classes < 2:
        raise UserError("the model has one class: there is nothing that an attack could change")
    wrong = ((task.labels < 0) | (task.labels >= num_classes)).nonzero().flatten().tolist()
    if wrong:
        raise UserError(
            f"label {int(task.labels[wrong[0]])} of image {wrong[0]} is no class of the model, whose {num_classes} are "
            f"numbered from 0 ({len(wrong)} such labels): leave these images out, or number their classes so"
        )
