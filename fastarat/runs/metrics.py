"""The lines of a run's `metrics.jsonl`: an epoch each, then the average's evaluation if there is one."""

from typing import Any

from fastarat.common.typed import fits

EVALUATION = {"images": str, "num_images": int, "steps": int, "clean": float, "robust": float}
DOUBTS = {"not_attackable": int, "undefined_logits": int}
"""what an evaluation of an earlier version does not say"""
EVERY_LINE = {"epoch": int, "step": int}


def is_line(value: Any) -> bool:
    """Whether a value that was read from a file is such a line, as far as anything here looks at it."""
    if not _holds(value, EVERY_LINE):
        return False
    measured = [value[name] for name in ("evaluation", "average") if name in value]
    trained = value.get("train", {"loss": 0.0})
    return all(map(_is_evaluation, measured)) and _holds(trained, {"loss": float})


def attested(evaluation: dict[str, Any]) -> float:
    """What chooses the best epoch: robust accuracy in percent, without the images that no attack could search."""
    return evaluation["robust"] - 100 * evaluation.get("not_attackable", 0) / evaluation["num_images"]


def _is_evaluation(value: Any) -> bool:
    return (
        _holds(value, EVALUATION)
        and value["num_images"] > 0
        and all(fits(value.get(name, 0), DOUBTS[name]) for name in DOUBTS)
    )


def _holds(value: Any, types: dict[str, type]) -> bool:
    return isinstance(value, dict) and all(name in value and fits(value[name], types[name]) for name in types)
