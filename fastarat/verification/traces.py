"""Single searches step by step, from the stored starts, so that no random number is compared."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastarat.attacks.apgd import Ascent, apgd
from fastarat.attacks.apgd_search import Search
from fastarat.attacks.attack import Conditions
from fastarat.attacks.fab import fab
from fastarat.attacks.objectives import PointLoss
from fastarat.common.errors import UserError
from fastarat.config.evaluation import EvaluationSettings
from fastarat.verification.compare import Count, Row
from fastarat.verification.kit import Kit, Result
from fastarat.verification.nets import allowed, image_rows

LOSSES: dict[str, PointLoss] = {"apgd_ce": "cross-entropy", "apgd_t": "targeted-dlr"}
NEAR, NEARER, FIRST, BEST_LOSS, FAB_NORM = 1e-4, 1e-5, 20, 1e-5, 0.02
NOT_FOUND = 1e9
"""the reference's distance of a point for which it found nothing begins above it"""


class Points(NamedTuple):
    """The images of a trace."""

    rows: Tensor
    x: Tensor
    y: Tensor
    target: Tensor


def trace_rows(kit: Kit, result: Result) -> Iterator[Row | Count]:
    """Rows of all searches that the file has. Raises `UserError` if it has none."""
    names = [name for name in LOSSES if f"{name}_iterates" in result.stored]
    if not names and "fab_t_norm" not in result.stored:
        raise UserError(f"{result.stored.path} holds no search that is known: apgd_ce, apgd_t, fab_t")
    points = _points(kit, result)
    for name in names:
        yield from _apgd_rows(kit, result, name, points)
    if "fab_t_norm" in result.stored:
        yield _fab_row(kit, result, points)


def _points(kit: Kit, result: Result) -> Points:
    stored = result.stored
    rows = stored.whole("index", -1).to(kit.device)
    if not len(rows) or rows.min() < 0 or rows.max() >= len(kit.x):
        raise UserError(f"{stored.path}: index is not of the {len(kit.x)} images of data.npz")
    x, y = kit.x[rows], kit.y[rows]
    target = stored.whole("apgd_t_target", len(rows)).to(kit.device) if "apgd_t_target" in stored else y
    if target.min() < 0 or target.max() >= kit.net(result.net)(x).shape[1]:
        raise UserError(f"{stored.path}: apgd_t_target are no classes of the net")
    return Points(rows, x, y, target)


def _apgd_rows(kit: Kit, result: Result, name: str, points: Points) -> Iterator[Row | Count]:
    stored, n, label = result.stored, len(points.rows), f"{result.label}: trace {name.replace('_', '-')}"
    theirs = stored.numbers(f"{name}_iterates", -1, *points.x.shape)
    iterates, best = [], [torch.zeros(n)]

    def show(iteration: int, search: Search) -> None:
        iterates.append(search.x_adv.cpu())
        best[0] = search.best_loss.cpu()

    start, steps = theirs[0].float().to(kit.device), len(theirs) - 1
    ascent = Ascent(LOSSES[name], target=points.target, steps=steps, start=start, compact_every=steps)
    conditions = Conditions(EvaluationSettings(norm=result.norm, eps=kit.eps(result)), show=show)
    _, broken, _ = apgd(kit.net(result.net), points.x, points.y, points.rows, conditions, ascent)
    apart = (torch.stack(iterates) - theirs).abs().flatten(2).amax(2)
    few = max(n // 12, 1) if result.norm == "l2" else 0
    if result.norm == "l2":
        near = int((apart[: FIRST + 1].amax(0) <= NEARER).sum())
        yield Count(f"{label}, points within {NEARER:.0e} for {FIRST} steps", near, n, 0)
    near = int((apart.amax(0) <= NEAR).sum())
    yield Count(f"{label}, points within {NEAR:.0e} for all steps", near, n, few)
    if f"{name}_loss_best" in stored:
        expected = stored.numbers(f"{name}_loss_best", n)
        error = float((best[0] - expected).abs().max())
        yield Row(f"{label}, best loss", error, allowed(BEST_LOSS, expected, torch.float32))
    robust = stored.flags(f"{name}_robust", n)
    yield Count(f"{label}, flags", int((robust == ~broken.cpu()).sum()), n, 0)
    if f"{name}_x_adv" in stored:
        x_adv = stored.numbers(f"{name}_x_adv", *points.x.shape).float()[~robust]
        yield from image_rows(kit, result, f"{label}, stored", x_adv, points.rows.cpu()[~robust])


def _fab_row(kit: Kit, result: Result, points: Points) -> Count:
    stored, n = result.stored, len(points.rows)
    theirs, steps = stored.numbers("fab_t_norm", n), 100
    if "fab_t_new_points" in stored:
        steps = len(stored.numbers("fab_t_new_points", -1, *points.x.shape))
    conditions = Conditions(EvaluationSettings(norm=result.norm, eps=0))
    _, distance, _ = fab(kit.net(result.net), points.x, points.y, points.target, conditions, steps=steps)
    ours, nothing = distance.cpu(), ~(theirs < NOT_FOUND)
    if "fab_t_x_adv" in stored:
        same = stored.numbers("fab_t_x_adv", *points.x.shape) == points.x.cpu()
        nothing |= same.flatten(1).all(1)
    near = torch.where(nothing, ours.isinf(), (ours / theirs - 1).abs() <= FAB_NORM)
    quantity = f"{result.label}: trace fab-t, distances within {100 * FAB_NORM:.0f} %"
    return Count(quantity, int(near.sum()), n, max(n // 6, 1))
