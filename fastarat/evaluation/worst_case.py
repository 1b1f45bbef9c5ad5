"""What several evaluations of one net under one threat model say together: never more than any of them allows."""

from collections.abc import Sequence
from dataclasses import replace

from fastarat.evaluation.outcomes import Outcomes


def worst_case(found: Sequence[Outcomes]) -> Outcomes | None:
    """Of evaluations, the strongest first, what counts: that of the strongest one's images, unless as many other images
    or more leave less. Of the same images one is robust that all evaluations leave right. None of none."""
    by_images: dict[str, list[Outcomes]] = {}
    for outcomes in found:
        by_images.setdefault(outcomes.images, []).append(outcomes)
    whole = [_together(same) for same in by_images.values()]
    as_many = [outcomes for outcomes in whole if len(outcomes.labels) >= len(whole[0].labels)]
    return min(as_many, key=lambda outcomes: outcomes.robust.mean(), default=None)


def _together(found: Sequence[Outcomes]) -> Outcomes:
    """Evaluations of the same images as one, named by the first and by those that broke or searched what no one before
    them did."""
    whole = found[0]
    for other in found[1:]:
        robust, unsearched = whole.robust & other.robust, whole.unsearched & other.unsearched
        if (robust < whole.robust).any() or (unsearched < whole.unsearched).any():
            whole = replace(
                whole,
                flags={**whole.flags, f"and {other.name}": robust},
                unsearched=unsearched,
                warnings=(*whole.warnings, *(f"{other.name}: {warning}" for warning in other.warnings)),
                beside=(*whole.beside, other.name),
            )
    return whole
