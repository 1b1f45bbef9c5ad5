"""The parts of AutoAttack that need no net: projections, DLR losses, Square's schedule and templates."""

import re
from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from fastarat.attacks.objectives import PointLoss, point_losses
from fastarat.attacks.projections import lengths, project_onto_plane
from fastarat.attacks.square import fraction, side, template
from fastarat.common.errors import UserError
from fastarat.config.attack import Norm
from fastarat.verification.compare import Count, Row
from fastarat.verification.kit import Stored

# Roundings of float32: of numbers of size 1; of a sum of products; of a shift's length.
ROUNDING, RESIDUAL, LENGTH = 1e-6, 3.3e-6, 1e-4
LOSSES: dict[str, PointLoss] = {"dlr": "dlr", "dlr_targeted": "targeted-dlr"}


def unit_rows(stored: Stored, device: torch.device) -> list[Row | Count]:
    """Rows of all units that the file has. Raises `UserError` if it has none, or only half of one."""
    found = [*_projections(stored, device), *_losses(stored, device), *_schedule(stored), *_templates(stored)]
    if not found:
        raise UserError(f"{stored.path} holds no unit that is known: projections, DLR losses, Square's sizes")
    return found


def _projections(stored: Stored, device: torch.device) -> Iterator[Row | Count]:
    norms = [norm for norm in get_args(Norm) if f"proj_{norm}_delta" in stored]
    if not norms:
        return
    points = stored.numbers("proj_points", -1, -1)
    w, b = stored.numbers("proj_w", *points.shape), stored.numbers("proj_b", len(points))
    corner = nearest_corner(points, w, b)
    for norm in norms:
        expected = stored.numbers(f"proj_{norm}_delta", *points.shape)
        shift = project_onto_plane(points.to(device), w.to(device), b.to(device), norm).cpu()
        q, label = points + shift, f"units: {norm} projection"
        reached = _height(corner, w, b) * _height(points, w, b) <= 0
        yield Row(f"{label}, outside the box", float((q - q.clamp(0, 1)).abs().max()), ROUNDING)
        allowed = max(RESIDUAL, _residual(points + expected, w, b, reached))
        yield Row(f"{label}, off the plane", _residual(q, w, b, reached), allowed)
        apart = (lengths(shift, norm) - lengths(expected, norm)).flatten().abs()[reached]
        yield Row(f"{label}, length", _largest(apart), LENGTH)
        yield Row(f"{label}, corner next to the plane", _largest((q - corner)[~reached]), ROUNDING)


def nearest_corner(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Where each pixel ends that moves towards its plane w.q = b until it stands at its wall."""
    way = w * _height(points, w, b)[:, None]
    return torch.where(way > 0, 0.0, torch.where(way < 0, 1.0, points))


def _height(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (w.double() * points).sum(1) - b


def _residual(points: Tensor, w: Tensor, b: Tensor, reached: Tensor) -> float:
    return _largest(_height(points, w, b)[reached])


def _largest(values: Tensor) -> float:
    """The largest absolute value, NaN if there is one; 0 of none."""
    return float(values.abs().max()) if values.numel() else 0.0


def _losses(stored: Stored, device: torch.device) -> Iterator[Row | Count]:
    names = [name for name in LOSSES if name in stored]
    if not names:
        return
    logits = stored.numbers("logits", -1, -1)
    y = stored.whole("y", len(logits)).to(device)
    for name in names:
        target = stored.whole("y_target", len(logits)).to(device) if name == "dlr_targeted" else y
        if logits.shape[1] < 4 or not _are_classes(y, logits) or not _are_classes(target, logits):
            raise UserError(f"{stored.path}: the entries logits, y and y_target do not fit each other")
        leaf = logits.to(device).requires_grad_()
        losses = point_losses(LOSSES[name], leaf, y, target)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        for entry, ours in ((name, losses.detach()), (f"{name}_grad", gradient)):
            expected = stored.numbers(entry, *ours.shape)
            scale = max(1.0, _largest(expected))
            yield Row(f"units: {entry}", _largest(ours.cpu() - expected) / scale, ROUNDING)


def _are_classes(y: Tensor, logits: Tensor) -> bool:
    return bool(((y >= 0) & (y < logits.shape[1])).all())


def _schedule(stored: Stored) -> Iterator[Row | Count]:
    if "square_p" in stored:
        expected = stored.numbers("square_p", -1)
        ours = torch.tensor([fraction(query) for query in range(len(expected))], dtype=expected.dtype)
        yield _equal("units: square_p", ours, expected)
    for name in stored.arrays:
        match = re.fullmatch(r"square_side_(linf|l2)_(\d+)", name)
        if match:
            norm, size = match.group(1), int(match.group(2))
            expected = stored.whole(name, -1)
            ours = torch.tensor([side(query, size, size, norm) for query in range(len(expected))])  # type: ignore[arg-type]
            yield _equal(f"units: {name}", ours, expected)


def _equal(quantity: str, ours: Tensor, expected: Tensor) -> Count:
    return Count(f"{quantity}, queries", int((ours == expected).sum()), len(expected), 0)


def _templates(stored: Stored) -> Iterator[Row | Count]:
    for name in stored.arrays:
        match = re.fullmatch(r"square_eta_l2_(\d+)", name)
        if match:
            length = int(match.group(1))
            expected = stored.numbers(name, length, length)
            yield Row(f"units: {name}", _largest(template(length).to(expected) - expected), ROUNDING)
