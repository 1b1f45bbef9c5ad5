"""The methods' losses as people write them: one forward for each half of a batch, PyTorch's own functions.

A loss returns `loss` and its means by fastarat's names. `net(x, branch)` gives logits and pooled features. ARREST is
not among them: there is no published code of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Net = Callable[..., tuple[Tensor, list[Tensor]]]
Losses = dict[str, Tensor]


@dataclass
class LossInputs:
    """What a loss is made of."""

    net: Net
    settings: Any
    """of the method"""
    predictors: nn.ModuleList
    teacher: Net | None
    balance: float
    """w, the weight of AR-AT's adversarial loss"""


def standard(inputs: LossInputs, x: Tensor, x_adv: Tensor, y: Tensor) -> Losses:
    """The cross-entropy of clean images."""
    return {"loss": F.cross_entropy(inputs.net(x, "adv")[0], y)}


def at(inputs: LossInputs, x: Tensor, x_adv: Tensor, y: Tensor) -> Losses:
    """The cross-entropy of attacked images (Madry et al., 2018)."""
    return {"loss": F.cross_entropy(inputs.net(x_adv, "adv")[0], y)}


def arat(inputs: LossInputs, x: Tensor, x_adv: Tensor, y: Tensor) -> Losses:
    """Both cross-entropies, weighted, and the invariance of features (the AR-AT paper, ICLR 2025)."""
    clean_logits, clean = inputs.net(x, "clean", True)
    adv_logits, adversarial = inputs.net(x_adv, "adv", True)
    terms = {
        "adversarial_cross_entropy": F.cross_entropy(adv_logits, y),
        "clean_cross_entropy": F.cross_entropy(clean_logits, y),
    }
    similar = [
        F.cosine_similarity(predict(moving), target.detach()).mean()
        for predict, moving, target in zip(inputs.predictors, adversarial, clean, strict=True)
    ]
    terms["invariance"] = inputs.settings.gamma * (1 - torch.stack(similar).mean())
    loss = inputs.balance * terms["adversarial_cross_entropy"] + (1 - inputs.balance) * terms["clean_cross_entropy"]
    return {"loss": loss + terms["invariance"], **terms}


def trades(inputs: LossInputs, x: Tensor, x_adv: Tensor, y: Tensor) -> Losses:
    """The clean cross-entropy, and beta times the divergence from it (Zhang et al., 2019)."""
    clean, adversarial = inputs.net(x, "adv")[0], inputs.net(x_adv, "adv")[0]
    cross_entropy = F.cross_entropy(clean, y)
    divergence = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean")
    loss = cross_entropy + inputs.settings.beta * divergence
    return {"loss": loss, "clean_cross_entropy": cross_entropy, "divergence": divergence}


def mart(inputs: LossInputs, x: Tensor, x_adv: Tensor, y: Tensor) -> Losses:
    """The boosted cross-entropy, and the divergence weighted by doubt (Wang et al., 2020)."""
    clean, adversarial = inputs.net(x, "adv")[0].softmax(1), inputs.net(x_adv, "adv")[0]
    p = adversarial.softmax(1)
    wrong = p.scatter(1, y[:, None], 0).argmax(1)
    boosted = F.cross_entropy(adversarial, y) + F.nll_loss(torch.log(1.0001 - p + 1e-12), wrong)
    per_image = F.kl_div(adversarial.log_softmax(1), clean, reduction="none").sum(1)
    divergence = (per_image * (1.0000001 - clean.gather(1, y[:, None])[:, 0])).mean()
    loss = boosted + inputs.settings.beta * divergence
    return {"loss": loss, "boosted_cross_entropy": boosted, "weighted_divergence": divergence}


def lbgat(inputs: LossInputs, x: Tensor, x_adv: Tensor, y: Tensor) -> Losses:
    """The distance to a clean teacher's logits, its cross-entropy, and TRADES' term (Cui et al., 2021)."""
    assert inputs.teacher is not None
    adversarial, clean, taught = inputs.net(x_adv, "adv")[0], inputs.net(x, "adv")[0], inputs.teacher(x, "adv")[0]
    guidance, cross_entropy = F.mse_loss(adversarial, taught), F.cross_entropy(taught, y)
    divergence = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean")
    loss = guidance + cross_entropy + inputs.settings.beta * divergence
    return {"loss": loss, "guidance": guidance, "teacher_cross_entropy": cross_entropy, "divergence": divergence}


LOSSES: dict[str, Callable[[LossInputs, Tensor, Tensor, Tensor], Losses]] = {
    "standard": standard,
    "at": at,
    "arat": arat,
    "trades": trades,
    "mart": mart,
    "lbgat": lbgat,
}
