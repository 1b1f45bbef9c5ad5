"""Pictures of what an attack does to a model's images: loss surfaces, sizes of perturbations, a gallery."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastarat.analysis import Analysis
from fastarat.analysis.pictures.layers import name_of
from fastarat.common.figures import COLOURS, figure_of, finish

LABELS = {"robust": "right under attack", "broken": "broken by the attack", "wrong": "wrong before"}


def surface_picture(path: Path, analysis: Analysis) -> None:
    """The cross-entropy round some images, along the gradient and along a random direction."""
    from matplotlib.colors import PowerNorm

    result, loss = analysis.result, analysis.surface.loss.cpu().numpy()
    towards = "sign of the gradient" if result["test_attack"]["norm"] == "linf" else "gradient"
    top = max(float(loss.max()), 1e-3)
    levels = top * np.linspace(0, 1, 25) ** 2  # finer where the loss is small
    size, title = (2.8 * len(loss) + 1.4, 3.9), _title("Cross-entropy round", result)
    with figure_of(path, 1, len(loss), size, title) as (figure, axes):
        colours = {"levels": levels, "norm": PowerNorm(0.5, 0, top), "cmap": "cividis"}
        radii = analysis.surface.radii.cpu().numpy()
        # A grid's rows go along the gradient, which points to the right here.
        drawn = [p.contourf(radii, radii, grid.T, **colours) for p, grid in zip(axes[0], loss, strict=True)]
        for panel, image in zip(axes[0], result["surface"]["images"], strict=True):
            panel.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], "--", color="white", linewidth=1)
            panel.plot(0, 0, "+", color="white", markersize=9)
            panel.set(xlabel=f"{towards}, radii", aspect="equal")
            panel.set_title(f"image {image}: {LABELS[_group(analysis, image)]}", fontsize=9)
        axes[0, 0].set_ylabel("random signs, radii")
        bar = {"ticks": levels[::6], "format": "%.2g", "shrink": 0.75, "label": "cross-entropy"}
        figure.colorbar(drawn[-1], ax=axes[0].tolist(), **bar)
        figure.supxlabel("cross: the image; dashed: a radius away along both directions", fontsize=8)


def perturbations_picture(path: Path, analysis: Analysis) -> None:
    """Histograms of the perturbations' norms, of images that were broken and of others."""
    attacked, attack = analysis.attacked, analysis.result["test_attack"]
    shift = (attacked.x_adv - attacked.x).flatten(1).double().cpu()
    linf, l2 = 255 * shift.abs().amax(1), shift.norm(dim=1)
    title = _title(f"PGD-{attack['steps']} perturbations of", analysis.result)
    with figure_of(path, 1, 2, (10, 3.9), title) as (_, axes):
        left, right = axes[0]
        _histogram(left, analysis, linf, 0, 1.1 * max(attack["eps_255"], float(linf.max())))
        _histogram(right, analysis, l2, 0.95 * float(l2.min()), 1.05 * float(l2.max()))
        left.set_xlabel("Linf norm, 1/255 of the pixel range")
        right.set_xlabel("L2 norm, pixel units")
        if attack["norm"] == "linf":
            left.axvline(attack["eps_255"], color="0.4", linewidth=1, label=f"eps {attack['eps_255']:g}/255")
        for panel in (left, right):
            finish(panel)


def _histogram(axes: Any, analysis: Analysis, norms: Tensor, low: float, high: float) -> None:
    bins = np.linspace(low, max(high, low + 1e-6), 41).tolist()
    for colour, style, (group, label) in zip(COLOURS, ("-", "--", ":"), LABELS.items(), strict=False):
        chosen = analysis.attacked.groups[group].cpu()
        if chosen.any():
            look = {"histtype": "step", "linewidth": 1.8, "linestyle": style, "color": colour}
            axes.hist(norms[chosen].numpy(), bins, label=f"{label} ({int(chosen.sum())})", **look)
    axes.set_ylabel("images")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.margins(y=0.35)


def gallery_picture(path: Path, analysis: Analysis) -> None:
    """Clean image, perturbation and adversarial image, each column an image, with labels."""
    attacked, shown, result = analysis.attacked, analysis.shown, analysis.result
    clean, moved = (_pixels(images[shown]) for images in (attacked.x, attacked.x_adv))
    shift = moved - clean
    scale = float(np.abs(shift).max()) or 1.0
    rows = (clean, 0.5 + shift / (2 * scale), moved)
    names = ("clean", f"perturbation\n(grey 0, black and\nwhite ±{255 * scale:.3g}/255)", "adversarial")
    size, title = (1.35 * len(shown) + 1.3, 5.2), _title("Predictions of clean and attacked", result)
    with figure_of(path, 3, len(shown), size, title) as (_, axes):
        for j, entry in enumerate(result["gallery"]):
            for i in range(3):
                axes[i, j].imshow(rows[i][j].clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes[i, j].set(xticks=[], yticks=[])
            axes[0, j].set_title(f"image {entry['image']}\nlabel: {_short(entry['label'])}", fontsize=8)
            for i, prediction in ((0, "clean"), (2, "adversarial")):
                mark, colour = ("✓", COLOURS[0]) if entry[prediction] == entry["label"] else ("✗", COLOURS[1])
                axes[i, j].set_xlabel(f"{mark} {_short(entry[prediction])}", fontsize=8, color=colour)
        for i, name in enumerate(names):
            axes[i, 0].set_ylabel(name, fontsize=8)


def _title(what: str, result: Mapping[str, Any]) -> str:
    return f"{what} test images, deployed model: {name_of(result)}"


def _group(analysis: Analysis, image: int) -> str:
    return next(group for group, chosen in analysis.attacked.groups.items() if chosen[image])


def _pixels(images: Tensor) -> np.ndarray:
    """[N, C, H, W] as [N, H, W, C], or [N, H, W] if there is one channel; more than three show their mean."""
    values = images.float().cpu().permute(0, 2, 3, 1).numpy()
    return values if values.shape[3] == 3 else values.mean(3)


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"
