"""The lines of a run's `metrics.jsonl`: an epoch each, then the average's evaluation if there is one."""

from typing import Any

from fastarat.typed import fits

EVALUATION = {"images": str, "num_images": int, "steps": int, "clean": float, "robust": float}
EVERY_LINE = {"epoch": int, "step": int}


def is_line(value: Any) -> bool:
    """Whether a value that was read from a file is such a line, as far as anything here looks at it."""
    if not _holds(value, EVERY_LINE):
        return False
    measured = [value[name] for name in ("evaluation", "average") if name in value]
    trained = value.get("train", {"loss": 0.0})
    return all(_holds(one, EVALUATION) for one in measured) and _holds(trained, {"loss": float})


def _holds(value: Any, types: dict[str, type]) -> bool:
    return isinstance(value, dict) and all(name in value and fits(value[name], types[name]) for name in types)
