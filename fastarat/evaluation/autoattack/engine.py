"""How the attacks are run on a batch: an `Engine`, and fastarat's own, `fast`."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastarat.attacks.apgd_search import Search
from fastarat.attacks.attack import Conditions
from fastarat.attacks.cuda_graphs import directly
from fastarat.attacks.found import Found
from fastarat.attacks.pgd import Logits
from fastarat.attacks.registry import ATTACKS
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
    attack, searches = ATTACKS[name], torch.zeros(2, dtype=torch.int64, device=x.device)

    def show(iteration: int, search: Search) -> None:
        if iteration == 0:
            searches[0] += (search.gradient == 0).flatten(1).all(1).sum()
            searches[1] += len(search.x)

    model, mover = task.graphs.of(logits_of) if task.graphs and attack.uses_mover else (logits_of, directly)
    conditions = Conditions(task.settings, task.clean_logits[rows], mover, show)
    return attack.run(model, x, y, rows, conditions), searches
