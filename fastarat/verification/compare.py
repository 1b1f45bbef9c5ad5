"""One quantity that was compared, and whether it is what it should be."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One quantity: its largest error, relative (or a share of pixels), and what is allowed."""

    quantity: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance

    @property
    def evidence(self) -> str:
        """Error and tolerance, to be read."""
        return f"error {self.error:8.1e}  tolerance {self.tolerance:.0e}"

    def to_json(self) -> dict[str, object]:
        """All of it, and whether it holds."""
        return {**asdict(self), "error": self.error, "holds": self.holds}


@dataclass(frozen=True)
class Count:
    """One quantity that is counted: how many there are (a mean, if of several seeds), how many there should be."""

    quantity: str
    found: float
    expected: float
    tolerance: float

    @property
    def error(self) -> float:
        """How many too many or too few."""
        return abs(self.found - self.expected)

    holds = Row.holds
    to_json = Row.to_json

    @property
    def evidence(self) -> str:
        """Both counts and the tolerance, to be read."""
        return f"{self.found:8.5g}  expected {self.expected:g} within {self.tolerance:g}"
