"""What this machine is, as a row: versions, GPU, its limits of power and clocks, and what `fastarat doctor` finds.

python -m bench.campaign.machine --rows environment.jsonl
"""

import subprocess
import sys
from typing import Any

from bench.common import command
from bench.common.rows import base_row, write_row
from fastarat.common.console import notice
from fastarat.verification.doctor import Finding, findings

# Each is asked for by itself: a driver that does not know one still answers the others.
ASKED = (
    *("power.limit", "power.draw", "clocks.max.sm", "clocks.max.mem", "clocks.sm", "clocks.mem"),
    *("clocks_throttle_reasons.active", "temperature.gpu", "memory.total", "memory.used", "utilization.gpu"),
)


@command.program("bench.campaign.machine")
def main(args: list[str] | None) -> int:
    """Write the row and print what matters; 1 if something that is needed is broken."""
    parser = command.Parser("bench.campaign.machine", __doc__)
    command.flags(parser, "device", rows="where the row goes; default: nowhere")
    arguments = command.parsed(parser, args, "describes the machine without one")
    command.check_writable(arguments.rows)
    found = findings()
    row = machine_row(arguments.device, found)
    for finding in found:
        notice(f"{finding.subject}: {finding.state}, {finding.detail}")
    write_row(arguments.rows, row)
    notice(headline(row))
    return 0 if row["correct"] else 1


def machine_row(device: str, found: list[Finding]) -> dict[str, Any]:
    """The row: facts, limits as nvidia-smi shows them, and the state of each finding."""
    row = base_row("environment", {}, None, device=device)
    limits = {name: value for name in ASKED if (value := _ask(name))} if device == "cuda" else {}
    states = {finding.subject: finding.state for finding in found}
    return {**row, "correct": "broken" not in states.values(), "limits": limits, "findings": states}


def headline(row: dict[str, Any]) -> str:
    """What a row of figures has to name."""
    where = f"{row['gpu']}, driver {row['driver']}" if row["gpu"] else f"CPU, {row['threads']} threads"
    power = row["limits"].get("power.limit")
    return f"{where}{f', {power}' if power else ''}, torch {row['torch']}, commit {row['commit'] or 'unknown'}"


def _ask(name: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={name}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), "").strip() or None


if __name__ == "__main__":
    sys.exit(main())
