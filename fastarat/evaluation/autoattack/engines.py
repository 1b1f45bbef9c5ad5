"""How the attacks are run on a batch: an `Engine`. `fast` is fastarat's own; `pyautoattack` is the package of this name
(Croce and Hein's own code), to compare with.

Model, images, order, batches and counting are those of `autoattack` with both. The package's attacks have the
standard's settings: 100 iterations, 5000 queries, one restart, and the seed set anew for every batch. Its driver is
left out, and with it the check that takes the interpreter's tracer from debuggers and coverage.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastarat.attacks.apgd_search import Search, random_start
from fastarat.attacks.attack import Conditions, Found
from fastarat.attacks.cuda_graphs import directly
from fastarat.attacks.objectives import has_direction, margin
from fastarat.attacks.pgd import Logits
from fastarat.attacks.registry import ATTACKS
from fastarat.common.errors import UserError
from fastarat.config.evaluation import NUM_TARGETS, STANDARD, EvaluationSettings
from fastarat.evaluation.autoattack.state import Task

# On a CPU tensors that fit into the caches, and whose memory the allocator keeps, save half of the time: a small
# residual net took 0.55 of the time an image, forward and backward, for 50 of CIFAR-10's images at once that it took
# for 250. 25 were as good, 8 were not. A large net is all but indifferent.
CPU_PIXELS = 64 * 3 * 32 * 32
CPU_FEWEST = 16
NORMS = {"linf": "Linf", "l2": "L2"}

Engine = Callable[[Logits, str, Task, Tensor, Tensor, Tensor], tuple[Found, Tensor]]
"""How attacks are run: from the model, an attack's name, the task, images [B, C, H, W] in [0, 1], labels and rows
(int64 [B]) to what the attack found, and how many searches began with a gradient of zero, of how many (int64 [2])"""


def fast(logits_of: Logits, name: str, task: Task, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Found, Tensor]:
    """An `Engine`: fastarat's own attacks."""
    pieces = zip(*(tensor.split(at_once(x)) for tensor in (x, y, rows)), strict=True)
    found, searches = zip(*(_piece(logits_of, name, task, *piece) for piece in pieces), strict=True)
    return Found(*map(torch.cat, zip(*found, strict=True))), torch.stack(searches).sum(0)


def at_once(x: Tensor) -> int:
    """How many images like `x` [N, C, H, W] are attacked at once: all of them, but fewer on a CPU."""
    return max(CPU_PIXELS // x[:1].numel(), CPU_FEWEST) if x.device.type == "cpu" else len(x)


def _piece(logits_of: Logits, name: str, task: Task, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Found, Tensor]:
    attack, searches = ATTACKS[name], torch.zeros(2, dtype=torch.int64, device=x.device)

    def show(iteration: int, search: Search) -> None:
        if iteration == 0:
            searches[0] += (search.gradient == 0).flatten(1).all(1).sum()
            searches[1] += len(search.x)

    model, mover = task.graphs.of(logits_of) if task.graphs and attack.uses_mover else (logits_of, directly)
    conditions = Conditions(task.settings, task.clean_logits[rows], mover, show)
    return attack.run(model, x, y, rows, conditions), searches


def check_engine(settings: EvaluationSettings) -> None:
    """Raise `UserError` if the package is not there, or has no such attacks."""
    foreign = [name for name in settings.names if name not in STANDARD]
    if foreign:
        raise UserError(f"pyautoattack has no {foreign[0]}: it runs {', '.join(STANDARD)}")
    if settings.targets != NUM_TARGETS:
        raise UserError(f"pyautoattack takes the standard's targets, not {settings.targets}: give {NUM_TARGETS}")
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
        raise UserError("the package pyautoattack is not installed: pip install 'fastarat[pyautoattack]'") from error
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    return AutoAttack


ENGINES: dict[str, Engine] = {"fast": fast, "pyautoattack": pyautoattack}
