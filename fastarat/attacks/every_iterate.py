"""PGD by which robustness is measured: an image is broken if any iterate is misclassified, the start included."""

import torch
from fastarat_kernels.pgd_step.reference import project
from torch import Tensor

from fastarat.attacks.pgd import Logits, pgd_step, reference_of, start_noise, start_point
from fastarat.attacks.settings import AttackConfig


def one_restart(
    logits_of: Logits, x: Tensor, y: Tensor, noise: Tensor | None, attack: AttackConfig
) -> tuple[Tensor, Tensor]:
    """From `x` + `noise` [B, C, H, W], cut to the ball: the last misclassified iterate of each image (`x` where there
    is none), and which have one (bool [B]). The host waits for nothing.
    """
    centre, x_adv = start_point(x, noise, attack)
    x_adv = project(x_adv, centre, attack.radius, attack.norm)
    reference = reference_of(attack, logits_of, centre)
    found, broken = x, torch.zeros_like(y, dtype=torch.bool)
    for step in range(attack.steps + 1):
        tried = x_adv
        if step < attack.steps:
            x_adv, logits = pgd_step(attack, logits_of, x_adv, centre, y, reference)
        else:
            with torch.no_grad():
                logits = logits_of(x_adv)
        wrong = logits.argmax(1) != y
        found, broken = torch.where(wrong.view(-1, 1, 1, 1), tried, found), broken | wrong
    return found, broken


def pgd_every_iterate(
    logits_of: Logits, x: Tensor, y: Tensor, rows: Tensor, *, attack: AttackConfig, restarts: int, seed: int
) -> tuple[Tensor, Tensor]:
    """`restarts` random starts for images `x` [B, C, H, W], each on those that are not broken yet; as `one_restart`.

    Starts are a function of seed, restart and `rows` (int64 [B]), the images' places in the evaluated set.
    """
    found, broken = x.clone(), torch.zeros_like(y, dtype=torch.bool)
    for restart in range(restarts):
        left = (~broken).nonzero().squeeze(1)
        if not len(left):
            break
        noise = start_noise(attack, x[left], seed, restart, rows[left])
        found[left], broken[left] = one_restart(logits_of, x[left], y[left], noise, attack)
    return found, broken
