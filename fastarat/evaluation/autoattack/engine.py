"""How the attacks are run on a batch: an `Engine`, and fastarat's own, `fast`."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastarat.attacks.apgd import apgd_ce, apgd_t
from fastarat.attacks.apgd_search import Search
from fastarat.attacks.cuda_graphs import directly
from fastarat.attacks.every_iterate import pgd_every_iterate
from fastarat.attacks.fab import fab_t
from fastarat.attacks.found import Found
from fastarat.attacks.pgd import Logits
from fastarat.attacks.square import square
from fastarat.config.attack import AttackConfig
from fastarat.config.evaluation import EvaluationSettings
from fastarat.evaluation.autoattack.state import Task

# On a CPU tensors that fit into the caches, and whose memory the allocator keeps, save half of the time: a small
# residual net took 0.55 of the time an image, forward and backward, for 50 of CIFAR-10's images at once that it took
# for 250. 25 were as good, 8 were not. A large net is all but indifferent.
CPU_PIXELS = 64 * 3 * 32 * 32
CPU_FEWEST = 16

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
    searches = torch.zeros(2, dtype=torch.int64, device=x.device)

    def show(iteration: int, search: Search) -> None:
        if iteration == 0:
            searches[0] += (search.gradient == 0).flatten(1).all(1).sum()
            searches[1] += len(search.x)

    own = task.settings
    if name in ("pgd", "cw"):
        attack = pgd_settings(own, name)
        found = pgd_every_iterate(logits_of, x, y, rows, attack=attack, restarts=own.restarts, seed=own.seed)
        return found, searches
    model, mover = task.graphs.of(logits_of) if task.graphs else (logits_of, directly)
    settings = {"norm": own.norm, "eps": own.eps, "mover": mover}
    targeted = {"clean_logits": task.clean_logits[rows], "num_targets": own.targets}
    if name == "apgd-ce":
        found = apgd_ce(model, x, y, rows, seed=own.seed, show=show, **settings)
    elif name == "apgd-t":
        found = apgd_t(model, x, y, rows, seed=own.seed, show=show, **targeted, **settings)
    elif name == "fab-t":
        found = fab_t(model, x, y, **targeted, **settings)
    else:
        found = square(model, x, y, rows, seed=own.seed, **settings)
    return found, searches


def pgd_settings(settings: EvaluationSettings, name: str) -> AttackConfig:
    """What `pgd` and `cw` (PGD on the margin) are in an evaluation."""
    step = settings.eps / 4 if settings.step is None else settings.step
    objective = "margin" if name == "cw" else "cross-entropy"
    return AttackConfig(
        norm=settings.norm, eps_255=255 * settings.eps, step_255=255 * step, steps=settings.steps, objective=objective
    )
