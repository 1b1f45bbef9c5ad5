"""What a campaign says of each finished stage, in a line: from the rows that it made, or from its output."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.common.processes import last_line
from bench.robustness import one_training

Row = dict[str, Any]
Headline = Callable[[Sequence[Row], str], str]
"""from the rows that a stage covers, and from its output"""


def printed(rows: Sequence[Row], output: str) -> str:
    """The last line that says something."""
    return last_line(output)


def throughput_headline(rows: Sequence[Row], output: str) -> str:
    """The fastest default among the rows, and how many times as fast as plain PyTorch it is."""
    timed = [row for row in rows if row["variant"] == "default" and row["images_per_s"]]
    if not timed:
        return last_line(output)
    best = max(timed, key=lambda row: row["images_per_s"])
    texts = [f"default {best['images_per_s']:,.0f} images/s at batch {best['batch']}"]
    for base in ("published", "strong"):
        if found := best["ratios"].get(base):
            is_resolved = not found["low"] <= 1 <= found["high"]
            texts.append(f"{found['median']:.2f}x {base}" if is_resolved else f"not resolved from {base}")
    return ", ".join(texts)


def kernels_headline(rows: Sequence[Row], output: str) -> str:
    """The share of a copy's bandwidth that our own variants reach."""
    own = [row["bandwidth_share"] for row in rows if row["variant"] in ("triton", "twin") and row["bandwidth_share"]]
    if not own:
        return last_line(output)
    return f"{100 * min(own):.0f} to {100 * max(own):.0f} % of a copy's bandwidth in {len(own)} cases"


def profile_headline(rows: Sequence[Row], output: str) -> str:
    """What a step took."""
    return next((line for line in output.splitlines() if "ms a step" in line), last_line(output))


def startup_headline(rows: Sequence[Row], output: str) -> str:
    """Seconds to the first step, and what importing adds."""
    first = {row["cache"]: row["seconds"] for row in rows if row["correct"] and row["case"] == "first step"}
    added = [row["s_p50"] for row in rows if row["case"] == "import" and row["module"] == "fastarat.training.train"]
    parts = [f"{seconds:.1f} s {cache}" for cache, seconds in first.items()]
    parts += [f"importing adds {seconds:.2f} s" for seconds in added[-1:]]
    return ", ".join(parts) if parts else last_line(output)


def loaders_headline(rows: Sequence[Row], output: str) -> str:
    """The share of the step that each loader lets it wait."""
    shares = {row["loader"]: row["waiting_share"] for row in rows if row["stage"] == "training" and row["correct"]}
    parts = [f"{name} {100 * share:.1f} %" for name, share in shares.items()]
    return f"waiting for data: {', '.join(parts)}" if parts else last_line(output)


def ladder_headline(rows: Sequence[Row], output: str) -> str:
    """How much of the ladder was right, and fast enough to be timed."""
    timed = sum(row["images_per_s"] is not None for row in rows)
    return f"{timed} of {len(rows)} variants have a speed" if rows else last_line(output)


def training_headline(rows: Sequence[Row], output: str) -> str:
    """The accuracies of the newest training."""
    return one_training.headline(rows[-1]) if rows else last_line(output)
