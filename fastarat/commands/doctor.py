"""`fastarat doctor`: what this machine has, and what is missing for what."""

from dataclasses import dataclass

from fastarat.commands.parsing import Printed, parse
from fastarat.common.console import print_json, print_table


@dataclass(frozen=True)
class DoctorArguments(Printed):
    """Say what this machine has and what is missing; exit 1 if fastarat cannot train here.

    For example: fastarat doctor
    """


def run(args: list[str]) -> int:
    """Print a row per finding."""
    arguments = parse(DoctorArguments, args, "fastarat doctor")
    from fastarat.verification.doctor import findings

    found = findings()
    if arguments.json:
        print_json([finding.__dict__ for finding in found])
    else:
        rows = [[f.subject, f.state, f.detail] for f in found]
        print_table("", ["what", "state", "detail"], rows)
    return 1 if any(f.state == "broken" for f in found) else 0
