"""Attacks on a whole model, which is left as it was: mode, gradients and, where asked, statistics."""

import torch
from fastarat_kernels.pgd_step.ball import project
from torch import Tensor, nn

from fastarat.attacks.pgd import pgd, start
from fastarat.common.errors import UserError
from fastarat.config.attack import AttackConfig
from fastarat.config.model import Branch
from fastarat.models.batch_norm import batch_norm_mode
from fastarat.models.split_batch_norm import forward


@torch.inference_mode(False)
def perturb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: AttackConfig,
    seed: int = 0,
    branch: Branch = "adv",
) -> Tensor:
    """Adversarial images for any model from images [N, C, H, W] in [0, 1] to logits [N, K].

    The same (seed, row) gives the same start on every device. `y`: int64 [N]. Raises `UserError` for
    bad settings or for pixels outside [0, 1].
    """
    problems = settings.problems()
    if problems:
        raise UserError("; ".join(problems))
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise UserError("images must lie in [0, 1]: put the normalisation into the model")
    # What was made under inference_mode takes part in no gradient.
    x, y = (given.clone() if given.is_inference() else given for given in (x, y))
    rows = torch.arange(len(x), device=x.device)
    first, centre = start(settings, x, rows, 0, seed=seed)
    first = project(first, centre, settings.radius, settings.norm)
    with batch_norm_mode(model, settings.batch_norm):
        return pgd(settings, lambda v: forward(model, v, branch, settings.batch_norm), centre, first, y)
