"""How robust any model is: `evaluate` attacks it, and an `Evaluation` says what is left."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastarat.attacks.registry import ATTACKS
from fastarat.common.console import notice
from fastarat.common.errors import UserError, WorkError
from fastarat.common.memory import memory_that_ran_out
from fastarat.common.tensors import checksum
from fastarat.common.tf32 import rounded_to_tf32
from fastarat.config.evaluation import NUM_TARGETS, EvaluationSettings
from fastarat.data.images.dataset import Images
from fastarat.evaluation.accuracies import CPU, device_of
from fastarat.evaluation.autoattack.checks import check_labels, check_model, check_settings
from fastarat.evaluation.autoattack.conduct import Conduct
from fastarat.evaluation.autoattack.driver import autoattack
from fastarat.evaluation.autoattack.prepared_model import InBf16, in_full_float32, prepared
from fastarat.evaluation.autoattack.state import as_numbers
from fastarat.evaluation.result import Evaluation

ROUNDING = 1e-6


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: EvaluationSettings,
    *,
    device: torch.device | str | None = None,
    state: Path | str | None = None,
    budget: float | None = None,
    advance: Callable[[float], None] = lambda amount: None,
) -> Evaluation:
    """Attack any model, in eval mode, from images in [0, 1] to logits: `images` [N, C, H, W], floats in [0, 1] or
    bytes; `labels`: int64 [N].

    `state`, `budget` and `advance` are those of a `Conduct`. The model stays where it is, and is left as it was; images
    go to it (or to `device`, where it must be). Raises `UserError` for bad settings, images, labels or models,
    `WorkError` where the memory is too small, or the model fails on a batch. May be called under `torch.no_grad`
    or `torch.inference_mode`. Pixels that a rounding has put outside [0, 1] are clipped, with a notice.
    """
    conduct = Conduct(None if state is None else Path(state), budget, advance)
    return evaluate_as(conduct, model, images, labels, settings, device)


@torch.inference_mode(False)
@torch.enable_grad()
def evaluate_as(
    conduct: Conduct,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: EvaluationSettings,
    device: torch.device | str | None = None,
) -> Evaluation:
    """`evaluate` by this conduct: among several processes, which all call it with the same."""
    check_settings(settings)
    images, labels = checked(images, labels)
    device = _device_of(model, device)
    check_model(model, images[:2].to(device), attacks=settings.names)
    first = as_numbers(images[:2].to(device))
    try:
        searching = nullcontext() if settings.dtype == "fp32" else prepared(InBf16(model, first), first)
        with prepared(model, first) as logits_of, searching as own:
            if rounded_to_tf32(device):
                own, logits_of = own or logits_of, in_full_float32(logits_of)
            found = autoattack(
                logits_of,
                images.to(device),
                labels.to(device),
                settings,
                searching=own,
                conduct=conduct,
                weights="" if conduct.state is None else weights_of(model),
            )
    except (RuntimeError, MemoryError) as error:
        if memory := memory_that_ran_out(error):
            raise WorkError(f"out of {memory} at batch {settings.batch}: give a smaller batch") from error
        raise
    return replace(found, options=departures(settings, device))


def as_images(images: Images, max_value: int) -> tuple[Tensor, Tensor]:
    """A data set's images and labels as `evaluate` takes them: bytes where the largest pixel is 255, else floats."""
    pixels = torch.tensor(images.images.transpose(0, 3, 1, 2))  # a copy: the set may be a read-only map
    return pixels if max_value == 255 else pixels.float() / max_value, torch.tensor(images.labels, dtype=torch.int64)


def weights_of(model: nn.Module) -> str:
    """A checksum of a model's parameters and buffers."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return checksum({name: value.detach().cpu().contiguous() for name, value in state.items()}, {})


def departures(settings: EvaluationSettings, device: torch.device) -> tuple[str, ...]:
    """Where an evaluation departs from the standard's setting, or from plain float32."""
    found = []
    if settings.targets != NUM_TARGETS and any(ATTACKS[name].fewest_classes for name in settings.names):
        found.append(f"{settings.targets} targets instead of {NUM_TARGETS}")
    if settings.engine == "pyautoattack":
        found.append("attacks of pyautoattack")
    if settings.dtype == "bf16":
        found.append("gradient attacks in bf16, what they find confirmed in fp32")
    elif rounded := rounded_to_tf32(device):
        found.append(f"gradient attacks with TF32 {rounded}, what they find confirmed in fp32")
    return tuple(found)


def checked(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels (int64) as attacks take them. Raises `UserError` for what can be none."""
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
        raise UserError(f"images and labels are {type(images).__name__} and {type(labels).__name__}: give tensors")
    if layouts := {given.layout for given in (images, labels)} - {torch.strided}:
        raise UserError(f"images or labels are {layouts.pop()}: give dense tensors, as their to_dense() does")
    # What was made under inference_mode takes part in no gradient.
    images, labels = (given.clone() if given.is_inference() else given for given in (images, labels))
    images = _clipped(images)
    check_labels(images, labels)
    if images.is_floating_point() and 0 < images.max() <= 1 / 255:
        raise UserError(f"images reach {float(images.max()):.2g}, as if divided by 255 twice: divide them once")
    return images, labels.long()


def _clipped(images: Tensor) -> Tensor:
    """Images in [0, 1] where they leave it by no more than their format rounds, as after a normalisation and back."""
    if not images.is_floating_point() or not images.numel():
        return images
    room = max(ROUNDING, torch.finfo(images.dtype).eps)
    beyond = float(torch.maximum(-images.min(), images.max() - 1))
    if not 0 < beyond <= room:
        return images
    notice(f"pixels up to {beyond:.1e} outside [0, 1], a rounding, are clipped")
    return images.clamp(0, 1)


def _device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Where the model is. Raises `UserError` if it is none, or not where it was asked for."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module")
    try:
        asked = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device {device!r} is none that torch knows: give cpu or cuda") from error
    there = device_of(model, asked or CPU)
    if asked is not None and (asked.type != there.type or asked.index not in (None, there.index)):
        raise UserError(f"the model is on {there}, not on {asked}: move it there with its to({str(asked)!r})")
    return there
