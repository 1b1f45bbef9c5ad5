"""What can be known before AutoAttack's attacks: whether model, images and settings are what it needs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastarat.attacks.autoattack_state import Task, as_numbers
from fastarat.attacks.settings import Norm
from fastarat.errors import UserError, unknown

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
NUM_TARGETS = 9
SQUARE_L2_LEAST_SIDE = 5

# What a confirmed image may be outside the ball: roundings of float32.
TOLERANCE: dict[Norm, float] = {"linf": 1e-6, "l2": 1e-5}


def check_images(images: Tensor) -> None:
    """Raise `UserError` unless these are images [N, C, H, W], N >= 1, bytes or numbers in [0, 1]."""
    if images.ndim != 4:
        raise UserError(f"images have the shape {list(images.shape)}: give [N, C, H, W]")
    if not len(images):
        raise UserError("there are no images to evaluate")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UserError(f"images are {images.dtype}: give bytes, or floats in [0, 1]")
    if images.dtype != torch.uint8 and not (images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"images lie in [{float(images.min()):.3g}, {float(images.max()):.3g}], not in [0, 1]: leave out their "
            "normalisation and put it into the model"
        )


def check_model(module: nn.Module, images: Tensor, num_classes: int) -> None:
    """Raise `UserError` unless `module`, in eval mode, maps `images` (as `autoattack` takes them) to logits.

    The first two images are tried, on the device where they are.
    """
    training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if training:
        raise UserError(f"the model is in train mode (in {training[0]}): call its eval() before it is attacked")
    check_images(images)
    x = as_numbers(images[:2])
    try:
        with torch.no_grad():
            logits = module(x)
    except RuntimeError as e:
        raise UserError(f"the model takes no images {list(x.shape)}: {str(e).strip().splitlines()[0]}") from None
    if not isinstance(logits, Tensor) or logits.shape != (len(x), num_classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the model returns {shape} for {len(x)} images, not logits [{len(x)}, {num_classes}]")


def check_settings(images: Tensor, labels: Tensor, norm: Norm, eps: float, batch: int, attacks: Sequence[str]) -> None:
    """Raise `UserError` for settings, images or labels that cannot be evaluated."""
    if norm not in TOLERANCE:
        raise unknown("norm", norm, TOLERANCE)
    if not (math.isfinite(eps) and eps > 0):
        raise UserError(f"eps is {eps}: give a number above 0, in units where pixels are in [0, 1]")
    if batch < 1:
        raise UserError(f"batch is {batch}: give 1 or more")
    for name in attacks:
        if name not in STANDARD:
            raise unknown("attack", name, STANDARD)
    if not attacks or len(set(attacks)) < len(attacks):
        raise UserError("attacks: give one or more, each once")
    check_images(images)
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise UserError(f"labels are {labels.dtype} {list(labels.shape)}: give a class number for each image")
    if "square" in attacks and norm == "l2" and min(images.shape[2:]) < SQUARE_L2_LEAST_SIDE:
        raise UserError("Square in L2 needs images of 5 x 5 pixels or more: leave it out of the attacks")


def check_logits(logits: Tensor, size: int, task: Task) -> None:
    """Raise `UserError` unless these are logits of `size` images, of enough classes for labels and attacks."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != size:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the model returns {shape} for {size} images, not logits [{size}, classes]")
    if logits.isnan().any():
        raise UserError("the model returns NaN for clean images: check its weights and its precision")
    num_classes, targeted = logits.shape[1], {"apgd-t", "fab-t"} & set(task.attacks)
    if targeted and num_classes <= NUM_TARGETS:
        raise UserError(
            f"the targeted attacks of AutoAttack take {NUM_TARGETS} wrong classes and need {NUM_TARGETS + 1}; "
            f"the model has {num_classes}: give attacks without {' and '.join(sorted(targeted))}"
        )
    if task.labels.min() < 0 or task.labels.max() >= num_classes:
        raise UserError(f"labels reach {int(task.labels.max())}: the model has {num_classes} classes, from 0")
