"""Where a training step's time goes, as a picture."""

from pathlib import Path
from typing import Any

from fastarat.common.figures import COLOURS, figure_of


def profile_picture(path: Path, profile: dict[str, Any]) -> None:
    """Draw a PNG of each part's share of a step's time, and of how near it is to its roof.

    `profile`: what `profile.json` holds (`fastarat.training.profiling.profiler`).
    """
    rows = profile["parts"]
    names = [row["part"] for row in rows]
    with figure_of(path, 1, 2, (10, 3.8), sharey=True) as (_, ((left, right),)):
        shares = [100 * row["share"] for row in rows]
        labels = [f"{share:.0f} %  ({row['ms']:.3g} ms)" for share, row in zip(shares, rows, strict=True)]
        bars = left.barh(names, shares, color=[*[COLOURS[0]] * (len(rows) - 1), "0.6"])
        left.bar_label(bars, labels, padding=4, fontsize=9)
        left.set(xlabel="share of the step's time, %", xlim=(0, 1.35 * max(shares)))
        left.set_title(f"{profile['recipe']}: {profile['ms_a_step']:.3g} ms a step", fontsize=10)
        roofs = [100 * (row["roof_share"] or 0) for row in rows]
        bars = right.barh(names, [min(roof, 100) for roof in roofs], color=COLOURS[2])
        known = [f"{roof:.2g} %" if roof < 10 else f"{roof:.0f} %" for roof in roofs]
        labels = [text if row["roof_share"] is not None else "" for text, row in zip(known, rows, strict=True)]
        right.axvline(100, color="0.3", linewidth=1, linestyle="--", zorder=0)
        for label in right.bar_label(bars, labels, padding=4, fontsize=9):
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        right.set(xlabel="share of its own roof, %", xlim=(0, 125))
        settings = f"batch {profile['batch']}, {profile['dtype']}, kernels {profile['kernels']}, {profile['compile']}"
        right.set_title(f"{profile['device']}, {settings}", fontsize=10)
        left.invert_yaxis()
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
