"""Training batches as the method sees them: attacked and measured as in training, nothing updated."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastarat.analysis import mixture
from fastarat.analysis.conflict import DEFINITIONS as CONFLICTS
from fastarat.analysis.conflict import conflict, naive_invariance
from fastarat.analysis.layers import Values, is_split, parameter_groups
from fastarat.data.loading.loader import Batch
from fastarat.models.batch_norm import batch_norm_mode
from fastarat.models.predictions import widened
from fastarat.models.split_batch_norm import forward_with_features
from fastarat.training.state import Training
from fastarat.training.step.train_step import Controls, StepParts, attack


def measure_batch(training: Training, batch: Batch, number: int, aligned: tuple[str, ...]) -> dict[str, Values]:
    """Attack the batch, start noise numbered `number`, and measure by layer the three conflicts (`conflict`) and the
    statistics' distance (`mixture`), named as in their `DEFINITIONS`. Weights, statistics and modes stay as they are.
    """
    parts, controls = attacking(training)
    controls.step.fill_(number)
    with batch_norm_mode(parts.model, "frozen"), batch_norm_mode(parts.method, "frozen"):
        x, x_adv = attack(parts, batch, controls)
        groups = parameter_groups(parts.model)
        own = own_conflict(parts, x, x_adv, batch.y)
        with mixture.distances(parts.model) as apart:
            logits, features = forward_with_features(parts.model, torch.cat([x, x_adv]), "both", "train")
        clean, adversarial = (F.cross_entropy(half, batch.y) for half in widened(logits).chunk(2))
        naive = conflict(naive_invariance(features, aligned), clean + adversarial, groups)
        branches = conflict(clean, adversarial, groups)
        # A parameter set of its own for each branch: their gradients never meet.
        branches |= {name: None for name, layer in parts.model.named_modules() if is_split(layer)}
        return dict(zip([*CONFLICTS, *mixture.DEFINITIONS], (own, naive, branches, apart), strict=True))


def own_conflict(parts: StepParts, x: Tensor, x_adv: Tensor, y: Tensor) -> Values:
    """The conflict of the method's own terms; None everywhere if it has no invariance terms."""
    terms = parts.method.terms(parts.model, x, x_adv, y)
    groups = parameter_groups(parts.model)
    if not terms.invariance or not terms.classification:
        return dict.fromkeys(groups)
    invariance, classification = (sum(kind.values()) for kind in (terms.invariance, terms.classification))
    assert isinstance(invariance, Tensor) and isinstance(classification, Tensor)
    return conflict(invariance, classification, groups)


def attacking(training: Training) -> tuple[StepParts, Controls]:
    """What attacks training batches: the training attack; where there is none, that of evaluations, on batch
    statistics, which it leaves."""
    parts, controls = training.parts, training.controls
    if parts.attack.steps == 0:
        parts = replace(parts, attack=replace(training.evaluation_attack, batch_norm="frozen"))
        sizes = Controls.of(parts)
        controls = controls._replace(eps=sizes.eps, step_size=sizes.step_size)
    return parts, controls
