"""What an attack does to images: how far it moves them, and which of them it breaks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastarat.attacks.every_iterate import one_restart
from fastarat.config.attack import AttackConfig, Norm
from fastarat.models.batch_norm import batch_norm_mode
from fastarat.models.predictions import predictions
from fastarat.models.split_batch_norm import forward

STEPS = 20
QUANTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True)
class Attacked:
    """Images before and after an attack on a model, on the device of the model."""

    x: Tensor
    """[N, C, H, W] in [0, 1]"""
    x_adv: Tensor
    """the last misclassified iterate of each image, the last one where there is none: the same shape"""
    y: Tensor
    """labels, int64 [N]"""
    clean_prediction: Tensor
    """int64 [N]; -1 where the logits predict nothing, as NaN"""
    adversarial_prediction: Tensor
    """int64 [N]; the same"""
    not_attackable: Tensor
    """the images of which the attack had no gradient free of NaN to follow at any point: bool [N]"""

    @property
    def groups(self) -> dict[str, Tensor]:
        """Which images are `broken` (right before alone), `robust` (right after too), `wrong` (before): bool [N].

        An image that was not attackable is among the robust ones.
        """
        right, right_after = self.clean_prediction == self.y, self.adversarial_prediction == self.y
        return {"broken": right & ~right_after, "robust": right & right_after, "wrong": ~right}


def pgd_20(norm: Norm, eps_255: float) -> AttackConfig:
    """The attack of an analysis: 20 steps of a quarter of the radius, from a uniform start, on running statistics."""
    return AttackConfig(norm=norm, eps_255=eps_255, step_255=eps_255 / 4, steps=STEPS, batch_norm="eval")


def attack_images(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: AttackConfig,
    *,
    seed: int,
    batch: int = 500,
    advance: Callable[[int], None] = lambda num_images: None,
) -> Attacked:
    """Attack images [N, C, H, W], labels int64 [N], by the deployed branch. The model is left as it was."""

    def logits_of(images: Tensor) -> Tensor:
        return forward(model, images, "adv", "eval")

    done = []
    for i, (part, labels) in enumerate(zip(x.split(batch), y.split(batch), strict=True)):
        with batch_norm_mode(model, "eval"):
            rows = torch.arange(len(part), device=x.device)
            restart = one_restart(logits_of, part, labels, rows, attack, seed + i, 0)
            found = restart.found
            x_adv = torch.where(found.broken.view(-1, 1, 1, 1), found.images, restart.last)
            with torch.no_grad():
                before, after = (predictions(logits_of(images)) for images in (part, x_adv))
        done.append((x_adv, labels, before, after, ~found.attackable))
        advance(len(part))
    return Attacked(x, *map(torch.cat, zip(*done, strict=True)))


def perturbation_norms(attacked: Attacked) -> dict[str, Any]:
    """For each group of images: how many, and the distribution of the perturbations' norms.

    `linf_255` in 1/255 of the pixel range, `l2` in pixel units, over all pixels of an image; each with its mean and
    quantiles (percent: value), null for a group without images.
    """
    shift = (attacked.x_adv - attacked.x).flatten(1).double()
    norms = {"linf_255": 255 * shift.abs().amax(1), "l2": shift.norm(dim=1)}
    return {
        group: {"num_images": int(chosen.sum()), **{kind: _summary(values[chosen]) for kind, values in norms.items()}}
        for group, chosen in attacked.groups.items()
    }


def _summary(values: Tensor) -> dict[str, Any] | None:
    if not len(values):
        return None
    shares = torch.tensor(QUANTILES, dtype=values.dtype, device=values.device) / 100
    quantiles = dict(zip(map(str, QUANTILES), torch.quantile(values, shares).tolist(), strict=True))
    return {"mean": float(values.mean()), "quantiles": quantiles}


def examples(attacked: Attacked, num_images: int) -> list[int]:
    """Images to look at: half of them broken, half robust, as far as there are such; then any."""
    kinds = [chosen.nonzero().flatten().tolist() for chosen in attacked.groups.values()]
    chosen = [i for kind in kinds[:2] for i in kind[: num_images // 2]]
    rest: Sequence[int] = [i for kind in kinds for i in kind if i not in chosen]
    return [*chosen, *rest][:num_images]
