"""What a golden file of AR-AT is compared with: evaluation, attacks, and three training steps."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastarat_kernels.implementations import PYTORCH
from torch import Tensor

from fastarat.common.distributed import World
from fastarat.config.attack import AttackConfig
from fastarat.config.training import OptimizerConfig
from fastarat.data.loading.loader import Batch
from fastarat.models.split_batch_norm import forward, forward_with_features
from fastarat.training.step.precision import Precision
from fastarat.training.step.train_step import Controls, StepParts, attack, train_step
from fastarat.verification.compare import Row
from fastarat.verification.golden import TOLERANCE, Golden

# How many rows a complete file gives.
NUM_ROWS = 17
# Share of an attack's pixels that may differ: where a gradient is zero to rounding its sign is chance.
PIXELS = 1e-3
# In float32 such signs are many, and ten steps on batch statistics of eight images carry each of them into
# most pixels: single pixels say nothing then, so the loss reached and the statistics left are compared.
REACHED, LEFT = 0.05, 0.2


def verify_file(path: Path, dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """Rows of everything the file holds, as they are computed. Raises `UserError` for what is no golden file."""
    golden = Golden(path, dtype, device)
    for branch in ("clean", "adv"):
        with torch.no_grad():
            logits = forward(golden.model, golden.x, branch, "eval")
        yield _single(golden, f"eval_logits_{branch}", logits)
    yield from _attacks(golden)
    yield from _training_step(golden)


def _single(golden: Golden, quantity: str, ours: Tensor) -> Row:
    expected = golden.expected(quantity, ours.shape)
    error = float(np.abs(ours.detach().double().cpu().numpy() - expected).max())
    return golden.row(quantity, [(error, float(np.abs(expected).max()))])


def _attacks(golden: Golden) -> Iterator[Row]:
    variants = (
        ("trainbn_corrected", AttackConfig()),
        ("trainbn_published", AttackConfig(start="published-code")),
        ("evalbn_corrected", AttackConfig(batch_norm="eval")),
    )
    for name, settings in variants:
        golden.reset()
        x_adv = _attacked(golden, settings)
        after = golden.compare(f"bn_after_pgd10_{name.partition('_')[2]}", golden.state())
        yield _attack(golden, f"pgd10_{name}", x_adv)
        if settings.batch_norm == "train":
            yield after if golden.exact else replace(after, tolerance=LEFT)


def step_parts(golden: Golden, settings: AttackConfig, first: Tensor) -> tuple[StepParts, Batch, Controls]:
    """A training step on the golden batch: its net and method, and an attack that starts from the images `first`."""
    parts = StepParts(
        model=golden.model,
        method=golden.method,
        attack=settings,
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
        precision=Precision("fp64" if golden.exact else "fp32", golden.device),
        world=World(golden.device),
        kernels=replace(PYTORCH, start_point=lambda *_: first),
        seed=0,
    )
    controls = Controls.of(parts, learning_rate=0.1)
    return parts, Batch(golden.x, golden.y, torch.arange(len(golden.x), device=golden.device)), controls


def _attacked(golden: Golden, settings: AttackConfig) -> Tensor:
    """The images on which the training step would go on: its attack, from the stored noise."""
    _, x_adv = attack(*step_parts(golden, settings, golden.x + golden.noise))
    return x_adv


def _attack(golden: Golden, quantity: str, x_adv: Tensor) -> Row:
    """float64: the share of pixels that differ. float32: how far the objective reached lies apart."""
    if golden.exact:
        difference = np.abs(x_adv.cpu().numpy() - golden.expected(quantity, x_adv.shape))
        share = float((~(difference <= TOLERANCE[golden.dtype])).mean())
        return Row(f"{quantity} (share of pixels)", share, PIXELS)
    golden.reset()
    reached = []
    for images in (x_adv, golden.tensor(golden.expected(quantity, x_adv.shape))):
        logits = forward(golden.model, images, "adv", "frozen")
        reached.append(float(F.cross_entropy(logits, golden.y).detach()))
    return Row(f"{quantity} (cross-entropy reached)", abs(reached[0] / reached[1] - 1), REACHED)


def _training_step(golden: Golden) -> Iterator[Row]:
    x_adv = golden.tensor(golden.expected("pgd10_trainbn_corrected", golden.x.shape))
    golden.reset()
    logits, features = forward_with_features(golden.model, torch.cat([golden.x, x_adv]), "both", "frozen")
    clean, adversarial = logits.chunk(2)
    yield _single(golden, "train_logits_clean", clean)
    yield _single(golden, "train_logits_adv", adversarial)
    yield golden.compare("feature_clean", {name: z.chunk(2)[0] for name, z in features.items()})
    yield golden.compare("feature_adv", {name: z.chunk(2)[1] for name, z in features.items()})

    golden.reset()
    terms = golden.method.terms(golden.model, golden.x, x_adv, golden.y).summands
    golden.reset()
    before, losses = [parameter.detach().clone() for parameter in golden.parameters()], []
    # The stored images are where the attack starts, and it takes no step.
    parts, batch, controls = step_parts(golden, AttackConfig(steps=0), x_adv)
    for step in range(3):
        losses.append(train_step(parts, batch, controls)["loss"])
        if step == 0:
            yield golden.compare("loss", {**terms, "total": losses[0]})
            # After a first step the momenta are the gradients and the weights' decay.
            decay = parts.optimizer.weight_decay
            yield from _gradients(golden, [m - decay * p for m, p in zip(parts.momenta, before, strict=True)])
            yield golden.compare("param_head_after_step", golden.state())
            yield golden.compare("buffer_after_step", golden.state())
    yield _single(golden, "loss_trajectory_3_steps", torch.stack(losses))


def _gradients(golden: Golden, gradients: list[Tensor]) -> Iterator[Row]:
    left, parts = iter(gradients), (golden.model, golden.method)
    ours = golden.by_name(*({name: next(left) for name, _ in part.named_parameters()} for part in parts))
    norms = {name: float(value.flat[0]) for name, value in golden.entries("grad_norm").items()}
    yield golden.compare("grad_norm", {name: g.norm() for name, g in ours.items()})
    yield golden.compare("grad_head", ours, norms)
