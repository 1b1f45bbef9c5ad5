"""The attacks of the package pyautoattack (Croce and Hein's own code) as an engine, to compare with.

Model, images, order, batches and counting are those of `autoattack`; only the attacks are the package's, with the
standard's settings: 100 iterations, 5000 queries, one restart, and the seed set anew for every batch. Its driver is
left out, and with it the check that takes the interpreter's tracer from debuggers and coverage.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastarat.attacks.apgd_search import random_start
from fastarat.attacks.found import Found, has_direction
from fastarat.attacks.objectives import margin
from fastarat.attacks.pgd import Logits
from fastarat.common.errors import UserError
from fastarat.config.evaluation import NUM_TARGETS, STANDARD, EvaluationSettings
from fastarat.evaluation.autoattack.state import Task

NORMS = {"linf": "Linf", "l2": "L2"}


def check_engine(settings: EvaluationSettings) -> None:
    """Raise `UserError` if the package is not there, or has no such attacks."""
    foreign = [name for name in settings.names if name not in STANDARD]
    if foreign:
        raise UserError(f"pyautoattack has no {foreign[0]}: it runs {', '.join(STANDARD)}")
    if settings.targets != NUM_TARGETS:
        raise UserError(f"pyautoattack takes the standard's {NUM_TARGETS} targets, not {settings.targets}")
    package()


def pyautoattack(logits_of: Logits, name: str, task: Task, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Found, Tensor]:
    """An `Engine`: what it found is what is misclassified. The package tells of nothing else; so whether there was a
    direction to follow is asked at each image and at a random point round it."""
    norm, eps, seed = task.settings.norm, task.settings.eps, task.settings.seed
    attacks = package()(logits_of, norm=NORMS[norm], eps=eps, seed=seed, version="standard", device=x.device)
    own = {"apgd-ce": attacks.apgd, "apgd-t": attacks.apgd_targeted, "fab-t": attacks.fab, "square": attacks.square}
    attack = own[name]
    if name == "apgd-ce":
        attack.loss = "ce"
    if name == "fab-t":
        attack.targeted = True
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        x_adv = attack.perturb(x.clone(), y.clone())
    none = torch.zeros(2, dtype=torch.int64, device=x.device)
    x_adv = x_adv.detach()
    attackable = torch.ones_like(y, dtype=torch.bool)
    if name != "square":
        attackable = _leads(logits_of, x, y) | _leads(logits_of, random_start(x, rows, norm, eps, 0, 0), y)
    return Found(x_adv, torch.zeros_like(y, dtype=torch.bool), attackable), none


def _leads(logits_of: Logits, x: Tensor, y: Tensor) -> Tensor:
    """Which of the images [B, C, H, W] have a gradient of the margin without a NaN, which the package does not survive,
    and with more than zeros: bool [B]."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(logits_of(leaf), y), leaf)
    return has_direction(gradient) & gradient.isfinite().flatten(1).all(1)


@cache
def package() -> Any:
    """Its class. Raises `UserError` if it is not installed."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UserError("the package pyautoattack is not installed: pip install 'fastarat[reference]'") from error
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    return AutoAttack
