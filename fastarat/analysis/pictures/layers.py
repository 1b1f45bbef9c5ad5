"""Pictures of an analysis, layer by layer: the last state beside the curves over training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastarat.common.figures import COLOURS, figure_of, finish, label_of

MARKERS = ("o", "s", "^", "D")
MOST_LABELS = 24
ONE_STATE = "one state only: train with --checkpoint.history N\nto see how it came about"


def conflict_picture(path: Path, result: Mapping[str, Any]) -> None:
    """Cosines between gradients: of the method's own losses, a naive invariance, clean against adversarial."""
    kinds = {
        "gradient_conflict": "invariance against classification, the method's own",
        "naive_conflict": "a plain invariance against cross-entropy",
        "clean_adversarial_conflict": "clean against adversarial cross-entropy",
    }
    first = next((kind for kind in kinds if known(result, kind)), "naive_conflict")
    with figure_of(path, 1, 2, (11, 4.6), f"Gradient conflict: {name_of(result)}") as (_, axes):
        layers_panel(axes[0, 0], result, kinds, "cosine of gradients (< 0: conflict)")
        axes[0, 0].set_ylim(-1, 1)
        training_panel(axes[0, 1], result, first, "cosine of gradients")
        axes[0, 1].set_title(f"over training: {kinds[first]}", fontsize=9)
        for panel in axes.flat:
            panel.axhline(0, color="0.3", linewidth=1)


def mixture_picture(path: Path, result: Mapping[str, Any]) -> None:
    """The distance between clean and adversarial batch statistics."""
    kinds = {"mixture_distance": "clean against adversarial batches"}
    title = f"Wasserstein distance of clean and adversarial batch statistics: {name_of(result)}"
    with figure_of(path, 1, 2, (11, 4.6), title) as (_, axes):
        layers_panel(axes[0, 0], result, kinds, "distance, pooled deviations")
        training_panel(axes[0, 1], result, "mixture_distance", "distance, pooled deviations")
        for panel in axes.flat:
            panel.set_ylim(bottom=0)


def features_picture(path: Path, result: Mapping[str, Any]) -> None:
    """Cosine of clean and adversarial features above, their spread below."""
    alike = {"feature_cosine": "deployed branch for both", "branch_cosine": "clean branch, adversarial branch"}
    spread = {"spread": "clean images", "spread_adversarial": "adversarial images"}
    with figure_of(path, 2, 2, (11, 8.6), f"Features of clean and adversarial images: {name_of(result)}") as (_, axes):
        layers_panel(axes[0, 0], result, alike, "cosine (1: the same)")
        training_panel(axes[0, 1], result, "feature_cosine", "cosine, deployed branch")
        layers_panel(axes[1, 0], result, spread, "spread (1: isotropic, 0: collapsed)")
        training_panel(axes[1, 1], result, "spread", "spread, clean images")
        for panel in axes[1]:
            panel.set_ylim(bottom=0)


def name_of(result: Mapping[str, Any]) -> str:
    """Whose analysis it is, for titles."""
    return f"{result['method']}, {result['model']} on {result['data']} ({Path(result['run']).name})"


def last_state(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured at the last checkpoint."""
    return next(state for state in result["states"] if "last" in state["names"])


def known(result: Mapping[str, Any], kind: str) -> dict[str, float]:
    """Where a measure is defined in the last state, by layer."""
    values = last_state(result)["layers"][kind] or {}
    return {layer: value for layer, value in values.items() if value is not None}


def layers_panel(axes: Any, result: Mapping[str, Any], kinds: Mapping[str, str], ylabel: str) -> None:
    """A curve for each kind that is known over the layers of the last state; the aligned layers are shaded."""
    state = last_state(result)
    layers = list(state["layers"][next(iter(kinds))])
    for (kind, label), colour, marker in zip(kinds.items(), COLOURS, MARKERS, strict=False):
        if values := known(result, kind):
            places = [layers.index(layer) for layer in values]
            look = {"marker": marker, "markersize": 4, "linewidth": 1, "color": colour}
            axes.plot(places, list(values.values()), label=label, **look)
    every = -(-len(layers) // MOST_LABELS)
    axes.set_xticks(range(0, len(layers), every), layers[::every], rotation=90, fontsize=7)
    aligned = [i for i, layer in enumerate(layers) if layer in result["aligned_layers"]]
    for i in aligned:
        axes.axvspan(i - 0.4, i + 0.4, color="0.9", zorder=0, label="aligned layers" if i == aligned[0] else None)
    axes.set_title(f"by layer, after epoch {state['epoch']:.4g}", fontsize=9, pad=32)
    axes.set_ylabel(ylabel)
    finish(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def training_panel(axes: Any, result: Mapping[str, Any], kind: str, ylabel: str) -> None:
    """A curve for each layer over the epochs, from dark (first) to light (last), and their mean in the summary."""
    from matplotlib import colormaps

    states = result["states"]
    if len(states) == 1:
        axes.text(0.5, 0.5, ONE_STATE, transform=axes.transAxes, ha="center", color="0.4")
        axes.set(xticks=[], yticks=[])
        return
    layers = list(known(result, kind))
    epochs = [state["epoch"] for state in states]
    mark = "." if len(states) < 30 else ""
    for i, layer in enumerate(layers):
        colour = colormaps["cividis"](0.9 * i / max(len(layers) - 1, 1))
        named = len(layers) <= 8 or i in (0, len(layers) - 1)
        values = np.array([state["layers"][kind][layer] for state in states], float)  # None is a gap
        axes.plot(epochs, values, f"{mark}-", color=colour, linewidth=1, label=label_of(layer) if named else None)
    means = np.array([state["means"][kind] for state in states], float)
    axes.plot(epochs, means, "--", color=COLOURS[1], linewidth=2, label="mean in the summary")
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title("over training, by layer", fontsize=9)
    finish(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
