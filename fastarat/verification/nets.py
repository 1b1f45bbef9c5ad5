"""What a kit's nets compute: logits, whether stored adversarial images fool them, PGD and CW in float64."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastarat.attacks.pgd import pgd
from fastarat.attacks.projections import lengths
from fastarat.config.attack import AttackConfig, Objective
from fastarat.evaluation.autoattack.state import TOLERANCE
from fastarat.models.predictions import are_right
from fastarat.verification.compare import Count, Row
from fastarat.verification.kit import Kit, Result

LOGITS = {torch.float64: 1e-9, torch.float32: 1e-4}
# Flags that a rounding may tip; logits after PGD, of which the median is taken: a near-zero gradient's sign is chance.
FLAGS, AFTER_PGD = 2, 1e-6
OBJECTIVES: dict[str, Objective] = {"pgd": "cross-entropy", "cw": "margin"}


def allowed(tolerance: float, values: Tensor, dtype: torch.dtype) -> float:
    """`tolerance`, or eight roundings of the largest of the values where those are more (logits times 100)."""
    sizes = values[values.isfinite()].abs()
    return max(tolerance, 8 * torch.finfo(dtype).eps * float(sizes.max())) if sizes.numel() else tolerance


def logits_rows(kit: Kit, result: Result) -> Iterator[Row | Count]:
    """Clean logits in both precisions, and the images that the stored attacks ended in."""
    model, stored = kit.net(result.net), result.stored
    clean = model(kit.x[:1])
    for dtype, name in ((torch.float64, "f64"), (torch.float32, "f32")):
        if f"clean_logits_{name}" in stored:
            expected = stored.numbers(f"clean_logits_{name}", len(kit.x), clean.shape[1])
            ours = model.to(dtype)(kit.x.to(dtype)).cpu()
            error = float((ours - expected).abs().max())
            yield Row(f"{result.label}: clean logits {name}", error, allowed(LOGITS[dtype], expected, dtype))
    model.float()
    for name in stored.arrays:
        tag = name.removesuffix("_xadv_f32")
        if tag != name:
            yield from _last_iterate_rows(kit, result, tag, stored.numbers(name, *kit.x.shape).float())


def _last_iterate_rows(kit: Kit, result: Result, tag: str, x_adv: Tensor) -> Iterator[Row | Count]:
    """Logits of the images that a stored attack ended in, and whether they are where they may be."""
    stored, label = result.stored, f"{result.label}: stored {tag}"
    ours = kit.net(result.net)(x_adv.to(kit.device)).cpu()
    if f"{tag}_logits_f32" in stored:
        expected = stored.numbers(f"{tag}_logits_f32", *ours.shape)
        error = float((ours - expected).abs().max())
        yield Row(f"{label} logits", error, allowed(LOGITS[torch.float32], expected, torch.float32))
    robust = stored.flags(f"{tag}_robust_f32", len(kit.x))
    yield Count(f"{label} flags", int((are_right(ours, kit.y.cpu()) == robust).sum()), len(robust), 0)
    yield from image_rows(kit, result, label, x_adv[~robust], (~robust).nonzero().flatten())


def aa_image_rows(kit: Kit, result: Result) -> Iterator[Row | Count]:
    """Which clean images are right, and the stored adversarial images of those that an attack broke."""
    stored, n = result.stored, len(kit.x)
    name = next((name for name in ("robust_after_clean", "robust_to_clean") if name in stored), None)
    if name:
        right = are_right(kit.net(result.net)(kit.x), kit.y).cpu()
        yield Count(f"{result.label}: clean flags", int((right == stored.flags(name, n)).sum()), n, 0)
    if "x_adv" in stored:
        rows = (stored.whole("broken_by", n) > 0).nonzero().flatten()
        x_adv = stored.numbers("x_adv", *kit.x.shape).float()[rows]
        yield from image_rows(kit, result, f"{result.label}: stored", x_adv, rows)


def image_rows(kit: Kit, result: Result, label: str, x_adv: Tensor, rows: Tensor) -> Iterator[Row | Count]:
    """Whether images [M, C, H, W] for the broken points `rows` (int64 [M]) fool the net, in the ball and in [0, 1]."""
    if not len(rows):
        return
    x_adv, rows = x_adv.to(kit.device), rows.to(kit.device)
    fooled = int((~are_right(kit.net(result.net)(x_adv), kit.y[rows])).sum())
    yield Count(f"{label} images that fool the net", fooled, len(rows), 0)
    beyond = float((lengths(x_adv - kit.x[rows], result.norm) - kit.eps(result)).clamp_min(0).max())
    beyond_pixels = float((x_adv - x_adv.clamp(0, 1)).abs().max())
    yield Row(f"{label} images outside the ball", max(beyond, beyond_pixels), TOLERANCE[result.norm])


def pgd_rows(kit: Kit, result: Result, tag: str) -> Iterator[Row | Count]:
    """One attack in float64 from the stored noise: `tag` is pgd20, cw50, ..."""
    stored, n = result.stored, len(kit.x)
    name, steps = re.fullmatch(r"(pgd|cw)(\d+)", tag).groups()  # type: ignore[union-attr]
    x = kit.x.double()
    start = (x + stored.numbers("noise", *x.shape).double().to(kit.device)).clamp(0, 1)
    sizes = {"eps_255": 255 * kit.eps(result), "step_255": 255 * stored.scalar("step"), "steps": int(steps)}
    settings = AttackConfig(norm=result.norm, objective=OBJECTIVES[name], **sizes)
    model: nn.Module = kit.net(result.net).double()
    logits = model(pgd(settings, model, x, start, kit.y)).cpu()
    model.float()
    robust, expected = are_right(logits, kit.y.cpu()), stored.flags(f"{tag}_robust_f64", n)
    yield Count(f"{result.label}: {tag} flags", int((robust == expected).sum()), n, FLAGS)
    yield Count(f"{result.label}: {tag} robust", int(robust.sum()), int(expected.sum()), FLAGS)
    if f"{tag}_logits_f64" in stored:
        theirs = stored.numbers(f"{tag}_logits_f64", *logits.shape)
        median = float((logits - theirs).abs().amax(1).quantile(0.5))
        yield Row(f"{result.label}: {tag} logits, median", median, allowed(AFTER_PGD, theirs, torch.float64))


def pgd_tags(result: Result) -> list[str]:
    """The attacks of a pgd file."""
    names = [name for name in result.stored.arrays if re.fullmatch(r"(pgd|cw)\d+_robust_f64", name)]
    return [name.removesuffix("_robust_f64") for name in names]
