"""How far a kernel is from its twin."""

from torch import Tensor


def error(ours: Tensor, expected: Tensor) -> float:
    """Relative root mean square error."""
    return float((ours.double() - expected.double()).norm() / expected.double().norm())
