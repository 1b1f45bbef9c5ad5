"""Every automatic choice of a run, with its reason."""

from fastarat.common.console import notice


class ChoiceLog:
    """Collects choices while a run is set up; prints each as it is made."""

    def __init__(self, quiet: bool = False):
        self.choices: list[dict[str, str]] = []
        self.quiet = quiet

    def choose(self, what: str, value: str, why: str) -> str:
        """Note an automatic choice and return it."""
        self.choices.append({"what": what, "value": value, "why": why})
        if not self.quiet:
            notice(f"{what}: {value} ({why})")
        return value
