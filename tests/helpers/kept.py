"""Evaluations of a run as it keeps them, without attacking anything."""

from typing import Any

import numpy as np

from fastarat.config.evaluation import EvaluationSettings
from fastarat.evaluation.outcomes import Outcomes, described

PGD = described(EvaluationSettings("pgd"))


def outcomes_of(
    flags: dict[str, np.ndarray], attack: dict[str, Any] = PGD, *, num_classes: int = 10, **others: Any
) -> Outcomes:
    """Of these flags (bool [N], `clean` first), with labels that go round the classes; `others`: further fields."""
    num_images = len(flags["clean"])
    fields = {
        "data": "set",
        "set_fingerprint": "all",
        "set_labels": "labels",
        "images": "images",
        "weights": "weights",
        "classes": tuple(map(str, range(num_classes))),
        "labels": np.arange(num_images) % num_classes,
        "unsearched": np.zeros(num_images, bool),
        "warnings": (),
    }
    return Outcomes(attack=attack, flags=flags, **(fields | others))
