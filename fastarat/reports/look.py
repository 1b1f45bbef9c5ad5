"""The images of a report: what the deployed model is most wrong about, and what an attack fools it on most."""

import base64
import io
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastarat.attacks.projections import lengths
from fastarat.evaluation.autoattack.state import as_numbers
from fastarat.evaluation.of_run import EvaluatedRun, evaluate_run, threat_of
from fastarat.runs.run import Run

LARGEST = 96
"""pixels of a shown image's side, at most"""
MOST_BYTES = 4_000_000
"""of all images on a page, whose readers may be on the road"""
NUM_SHOWN = 8
PICTURES_OF_ONE = 3

STEPS = 20
NUMBERS_OF_IMAGES = (500, 200, 100, 50)
MOST_SHARE, LEAST_SECONDS = 0.02, 10.0
"""of its training's time, or if that is longer in seconds: what a look may cost"""


@dataclass(frozen=True)
class Shown:
    """One image with what the net says of it, as a page shows it."""

    place: int
    """among the evaluated images"""
    label: str
    clean: str
    """the class predicted of the image as it is"""
    clean_percent: float
    """its probability"""
    adversarial: str
    adversarial_percent: float
    is_attacked: bool
    """False for one that is wrong as it is, and for one that no attack broke"""
    distance: str
    """how far the attack moved it"""
    pictures: tuple[str, str, str]
    """data URIs: the image, the perturbation (grey is none), the adversarial image"""


@dataclass(frozen=True)
class Look:
    """The images of one run."""

    hardest: list[Shown]
    """misclassified as they are, those the net is surest of first"""
    most_fooled: list[Shown]
    """right as they are and wrong under attack, those whose label lost the most probability first"""


def side_among(num_runs: int) -> int:
    """How many pixels wide and high the images of each of so many runs may be, for the page to stay small.

    Noise, as of a perturbation, takes 3 bytes a pixel as a PNG, and 4 in base64.
    """
    return min(LARGEST, isqrt(MOST_BYTES // (4 * num_runs * 2 * NUM_SHOWN * PICTURES_OF_ONE)))


def look_at(run: Path, num_images: int, device: torch.device, data: str | None = None, *, side: int = LARGEST) -> Look:
    """Evaluate the deployed model by PGD-20 under its own threat model, keep the outcomes, and choose what to show.

    `num_images`: test images; `side`: pixels of a shown image's, larger ones are made smaller. Raises `UserError` for a
    run without weights or without test images.
    """
    evaluated = evaluate_run(run, threat_of(run, steps=STEPS), num_images, device, data)
    x, y, evaluation = as_numbers(evaluated.images), evaluated.labels, evaluated.evaluation
    moved = x.clone()
    moved[evaluation.rows] = evaluation.x_adv.to(x.dtype)
    before, after = (_probabilities(evaluated, images) for images in (x, moved))
    own_before, own_after = (values.gather(1, y[:, None]).squeeze(1) for values in (before, after))
    right, robust = evaluation.flags["clean"], list(evaluation.flags.values())[-1]
    surest = torch.where(right, torch.full_like(own_before, -1), before.amax(1))
    lost = torch.where(right & ~robust, own_before - own_after, torch.full_like(own_before, -1))

    def shown(order: Tensor, chosen: Tensor) -> list[Shown]:
        places = [i for i in order.argsort(descending=True).tolist() if chosen[i]][:NUM_SHOWN]
        return [_shown(evaluated, i, x[i], moved[i], before[i], after[i], side) for i in places]

    return Look(shown(surest, ~right), shown(lost, right & ~robust))


def affordable_images(run: Run) -> int:
    """How many test images a report may look at at the end of a training, by the time that its steps took."""
    lines = [line for line in run.metrics() if "images_per_s" in line]
    if not lines:
        return NUMBERS_OF_IMAGES[-1]
    config = run.config()
    # In gradients of an image, of which a step of training takes one more than its attack has steps.
    per_s = lines[-1]["images_per_s"] * (config.attack.steps + 1) / config.num_processes
    seconds = max(MOST_SHARE * lines[-1]["seconds"], LEAST_SECONDS)
    return next((number for number in NUMBERS_OF_IMAGES if number * STEPS <= seconds * per_s), NUMBERS_OF_IMAGES[-1])


def _probabilities(evaluated: EvaluatedRun, images: Tensor) -> Tensor:
    """[N, K] on the CPU; 0 where the logits are no numbers."""
    device = next(evaluated.model.parameters()).device
    with torch.no_grad():
        parts = [evaluated.model(part.to(device)).float().softmax(1).cpu() for part in images.split(250)]
    return torch.cat(parts).nan_to_num(0.0)


def _shown(
    evaluated: EvaluatedRun, i: int, x: Tensor, moved: Tensor, before: Tensor, after: Tensor, side: int
) -> Shown:
    classes, evaluation = evaluated.outcomes.classes, evaluated.evaluation
    shift = moved - x
    is_attacked = bool(shift.any())
    length = float(lengths(shift[None], evaluation.norm)[0]) * 255
    scale = max(float(shift.abs().max()), 1e-12)
    pictures = (x, 0.5 + shift / (2 * scale), moved)
    return Shown(
        place=i,
        label=classes[int(evaluated.labels[i])],
        clean=classes[int(before.argmax())],
        clean_percent=100 * float(before.max()),
        adversarial=classes[int(after.argmax())],
        adversarial_percent=100 * float(after.max()),
        is_attacked=is_attacked,
        distance=f"{length:.3g}/255 in {'L∞' if evaluation.norm == 'linf' else 'L2'}",
        pictures=tuple(as_uri(picture, side) for picture in pictures),  # type: ignore[arg-type]
    )


def as_uri(image: Tensor, side: int) -> str:
    """An image [C, H, W] in [0, 1], made no larger than `side` pixels, as a PNG in a data URI; of other than 1 or 3
    channels their mean."""
    from PIL import Image

    pixels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    pixels = pixels if pixels.shape[2] == 3 else pixels.mean(2).round().astype(np.uint8)
    picture, written = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((side, side))
    picture.save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
