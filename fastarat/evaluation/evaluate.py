"""How robust any model is: `evaluate` attacks it, and an `Evaluation` says what is left."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fastarat.attacks.pgd import Logits
from fastarat.common.console import notice
from fastarat.common.errors import UserError, WorkError, unknown
from fastarat.config.attack import Norm
from fastarat.data.images.dataset import Images
from fastarat.evaluation.autoattack.checks import NUM_TARGETS, STANDARD, check_attacks, check_images, check_model
from fastarat.evaluation.autoattack.driver import Engine, autoattack, fast
from fastarat.evaluation.autoattack.frozen_model import InBf16, frozen
from fastarat.evaluation.autoattack.state import as_numbers
from fastarat.evaluation.evaluated import Evaluation
from fastarat.evaluation.result import AutoAttackResult

EvaluationDtype = Literal["fp32", "bf16"]
EngineName = Literal["fast", "reference"]
ROUNDING = 1e-6


@torch.inference_mode(False)
@torch.enable_grad()
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: str = "autoattack",
    *,
    norm: Norm = "linf",
    eps: float = 8 / 255,
    num_images: int | None = None,
    seed: int = 0,
    batch: int = 250,
    targets: int = NUM_TARGETS,
    steps: int = 20,
    restarts: int = 1,
    step: float | None = None,
    dtype: EvaluationDtype = "fp32",
    engine: EngineName = "fast",
    device: torch.device | str | None = None,
    state: Path | str | None = None,
    budget: float | None = None,
    advance: Callable[[float], None] = lambda amount: None,
) -> Evaluation:
    """Attack any model, in eval mode, from images in [0, 1] to logits: `images` [N, C, H, W], floats in [0, 1] or
    bytes, of which the first `num_images` (None: all) count; `labels`: int64 [N].

    `attack` is `autoattack` (apgd-ce, apgd-t, fab-t and square), one of these, `pgd` (of `steps` steps of `step`, eps
    / 4 by default, from each of `restarts` starts; an image is broken by any iterate), `cw` (the same on the margin),
    `none`, or several, separated by commas. `targets`, `state`, `budget` and `advance` are `autoattack`'s.

    `dtype` bf16 lets attacks see the model in bfloat16 (autocast), and counts what float32 confirms. `engine`
    reference runs the attacks of the package pyautoattack. The model stays where it is, and is left as it was; images
    go to it (or to `device`, where it must be). Raises `UserError` for bad settings, images, labels or models,
    `WorkError` where the GPU's memory is too small, or the model fails on a batch. May be called under
    `torch.no_grad` or `torch.inference_mode`. Pixels that a rounding has put outside [0, 1] are clipped, with a notice.
    """
    names = attack_names(attack)
    images, labels = _given(images, labels, num_images)
    device = _device_of(model, device)
    check_model(model, images[:2].to(device), attacks=names)
    first = as_numbers(images[:2].to(device))
    settings = {"targets": targets, "steps": steps, "restarts": restarts, "step": step}
    with _enough_memory(batch), frozen(model, first) as logits_of, _searching(model, first, dtype) as searching:
        result = autoattack(
            logits_of,
            images.to(device),
            labels.to(device),
            norm=norm,
            eps=eps,
            seed=seed,
            batch=batch,
            attacks=names,
            engine=_engine(engine, names, targets),
            searching=searching,
            state=None if state is None else Path(state),
            budget=budget,
            advance=advance,
            **settings,
        )
        with torch.no_grad():
            num_classes = logits_of(first).shape[1]
    return _evaluation(
        attack, result, labels, num_classes, norm, eps, departures(names, targets, dtype, engine, device)
    )


def attack_names(attack: str) -> tuple[str, ...]:
    """The attacks that `attack` stands for. Raises `UserError` for a name that is none."""
    if attack == "none":
        return ()
    if not attack:
        raise UserError("no attack is named: give autoattack, pgd or others, or none for clean accuracy alone")
    names = tuple(name for part in attack.split(",") for name in (STANDARD if part == "autoattack" else (part,)))
    check_attacks(names)
    return names


def as_images(images: Images, max_value: int) -> tuple[Tensor, Tensor]:
    """A data set's images and labels as `evaluate` takes them: bytes where the largest pixel is 255, else floats."""
    pixels = torch.tensor(images.images.transpose(0, 3, 1, 2))  # a copy: the set may be a read-only map
    return pixels if max_value == 255 else pixels.float() / max_value, torch.tensor(images.labels, dtype=torch.int64)


def departures(
    names: Sequence[str], targets: int, dtype: EvaluationDtype, engine: EngineName, device: torch.device
) -> tuple[str, ...]:
    """Where an evaluation departs from the standard's setting, or from plain float32."""
    found = []
    if targets != NUM_TARGETS and {"apgd-t", "fab-t"} & set(names):
        found.append(f"{targets} targets instead of {NUM_TARGETS}")
    if dtype == "bf16":
        found.append("attacks in bf16, what they find confirmed in fp32")
    if engine == "reference":
        found.append("attacks of pyautoattack")
    # Not the older `allow_tf32`: it raises where a program has set the newer names.
    if device.type == "cuda" and torch.backends.cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
        found.append("TF32 convolutions, as PyTorch's default")
    if device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        found.append("TF32 matrix products")
    return tuple(found)


def _given(images: Tensor, labels: Tensor, num_images: int | None) -> tuple[Tensor, Tensor]:
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
        raise UserError(f"images and labels are {type(images).__name__} and {type(labels).__name__}: give tensors")
    if num_images is not None and num_images < 1:
        raise UserError(f"num_images is {num_images}: give 1 or more")
    # What was made under inference_mode takes part in no gradient.
    images, labels = (given.clone() if given.is_inference() else given for given in (images, labels))
    images = _clipped(images)
    check_images(images)
    if images.is_floating_point() and 0 < images.max() <= 1 / 255:
        raise UserError(f"images reach {float(images.max()):.2g}, as if divided by 255 twice: divide them once")
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise UserError(f"labels are {labels.dtype} {list(labels.shape)}: give a class number for each image")
    return images[:num_images], labels[:num_images].long()


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
        device = None if device is None else torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r} is none that torch knows: give cpu or cuda") from None
    first = next(chain(model.parameters(), model.buffers()), None)
    if first is None:
        return torch.device(device or "cpu")
    asked = device or first.device
    if asked.type != first.device.type or asked.index not in (None, first.device.index):
        raise UserError(f"the model is on {first.device}, not on {asked}: move it there with its to({str(asked)!r})")
    return first.device


def _engine(name: EngineName, names: Sequence[str], targets: int) -> Engine:
    if name == "fast":
        return fast
    if name != "reference":
        raise unknown("engine", name, ("fast", "reference"))
    from fastarat.evaluation.autoattack.pyautoattack import reference_engine

    return reference_engine(names, targets)


def _searching(model: nn.Module, x: Tensor, dtype: EvaluationDtype) -> AbstractContextManager[Logits | None]:
    """What attacks look at, where that is not the model itself."""
    if dtype == "fp32":
        return nullcontext()
    if dtype != "bf16":
        raise unknown("dtype", dtype, ("fp32", "bf16"))
    return frozen(InBf16(model, x.device.type), x)


@contextmanager
def _enough_memory(batch: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise WorkError(f"out of GPU memory at batch {batch}: give a smaller batch") from None


def _evaluation(
    attack: str,
    result: AutoAttackResult,
    labels: Tensor,
    num_classes: int,
    norm: Norm,
    eps: float,
    options: tuple[str, ...],
) -> Evaluation:
    return Evaluation(
        attack=attack,
        norm=norm,
        eps=eps,
        num_classes=num_classes,
        labels=labels.cpu(),
        flags=result.robust_after,
        rows=result.rows,
        x_adv=result.x_adv,
        not_attackable={name: torch.tensor(rows, dtype=torch.int64) for name, rows in result.not_attackable.items()},
        undefined={name: torch.tensor(rows, dtype=torch.int64) for name, rows in result.undefined.items()},
        seconds=result.seconds,
        traces=result.traces,
        asked=result.asked,
        model_warnings=result.model_warnings,
        options=options,
        stopped=result.stopped,
    )
