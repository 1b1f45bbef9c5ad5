"""What there is to verify in a folder, and in which order: all that is quick first."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from fastarat.common.errors import UserError
from fastarat.evaluation.autoattack.progress import PASSES
from fastarat.verification import PARTS, PartName
from fastarat.verification.compare import Count, Row
from fastarat.verification.golden_checks import NUM_ROWS, verify_file
from fastarat.verification.kit import PATTERNS, Kit, Result
from fastarat.verification.nets import aa_image_rows, logits_rows, pgd_rows, pgd_tags
from fastarat.verification.traces import trace_rows
from fastarat.verification.units import unit_rows
from fastarat.verification.whole_attacks import attack_rows, attacks_of, share_of

Advance = Callable[[float], None]
Rows = Iterator[Row | Count]


class Part(NamedTuple):
    """Something to verify, and its work: the standard AutoAttack on one image that survives it is 1."""

    name: str
    work: float
    rows: Callable[[Advance], Rows]


def parts_of(
    path: Path, device: torch.device, dtype: torch.dtype, only: Sequence[PartName]
) -> Iterator[tuple[Path, list[Part]]]:
    """The file or kit at `path`; of another directory, its files and kits, one after the other.

    `dtype` is for AR-AT's vectors, `only` for kits. Raises `UserError` for what cannot be read or holds nothing.
    """
    if not path.is_dir():
        yield path, [Part("vectors", NUM_ROWS, partial(_vectors, path, "", dtype, device))]
        return
    kits = [path] if is_kit(path) else sorted(folder for folder in path.iterdir() if folder.is_dir() and is_kit(folder))
    files = [] if is_kit(path) else sorted(path.glob("*.npz"))
    if not kits and not files:
        raise UserError(f"{path} holds nothing to verify: give golden vectors (.npz), or a kit with its arch_NAME.json")
    for file in files:
        yield file, [Part("vectors", NUM_ROWS, partial(_vectors, file, f"{file.stem}: ", dtype, device))]
    for kit in kits:
        yield kit, kit_parts(kit, device, only)


def _vectors(file: Path, prefix: str, dtype: torch.dtype, device: torch.device, advance: Advance) -> Rows:
    for row in verify_file(file, dtype, device):
        yield replace(row, quantity=f"{prefix}{row.quantity}")
        advance(1)


def is_kit(folder: Path) -> bool:
    """Whether a folder holds a file of a kit."""
    return any(next(folder.glob(pattern), None) is not None for pattern in PATTERNS)


def kit_parts(folder: Path, device: torch.device, only: Sequence[PartName]) -> list[Part]:
    """All that a kit holds, of the kinds `only`, in their order. Raises `UserError` for a kit that is not whole."""
    kit = Kit(folder, device)
    parts = [Part("units", 1, _quick(1, unit_rows, kit.units, device))] if kit.units else []
    for result in kit.results:
        kit.net(result.net)
        parts += _parts(kit, result)
    return sorted((part for part in parts if part.name in only), key=lambda part: PARTS.index(part.name))  # type: ignore[arg-type]


def _parts(kit: Kit, result: Result) -> list[Part]:
    n = len(kit.x)
    if result.kind == "trace":
        return [Part("traces", 1, _quick(1, trace_rows, kit, result))]
    if result.kind == "pgd":
        tags = {tag: 2 * n * int(tag.lstrip("pgdcw")) / sum(PASSES.values()) for tag in pgd_tags(result)}
        own = [Part("pgd", work, _quick(work, pgd_rows, kit, result, tag)) for tag, work in tags.items()]
        return [Part("nets", 1, _quick(1, logits_rows, kit, result)), *own]
    work = n * share_of(attacks_of(result))
    images = Part("nets", 1, _quick(1, aa_image_rows, kit, result))
    return [images, Part("attacks", work, partial(attack_rows, kit, result))]


def _quick(work: float, rows: Callable[..., Iterable[Row | Count]], *given: object) -> Callable[[Advance], Rows]:
    """What tells of its work once it is done."""

    def run(advance: Advance) -> Rows:
        yield from rows(*given)
        advance(work)

    return run
