"""Measuring one case of the kernel benchmark: every variant is compared with the definition, then timed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from bench.common.timing import Timed, measure, one_line, prepare
from bench.kernels.cases import Direction, Draw, Function, Inputs, KernelCase, name_of
from fastarat.common.console import notice

# Relative RMS error that is allowed. Half precision: a unit in the last place of 1; each variant rounds up to three
# times, with an RMS error of some 0.3 units each. float32: sums of 10^5 terms in any order, some hundreds of units.
BOUNDS = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 5e-5}
ROTATED_BYTES, MAX_CALLS = 256 << 20, 16
"""A run calls a small kernel on several sets of tensors in turn, so that it is long beside what its start takes."""


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    device: torch.device
    repeats: int
    smoke: bool
    bandwidth: float
    """bytes a second of a large copy"""
    base: dict[str, Any]
    """the fields that all rows share"""


# Otherwise inductor's backward pass frees what a second one needs.
@torch._functorch.config.patch(donated_buffer=False)
def measure_case(case: KernelCase, bench: Bench) -> list[dict[str, Any]]:
    """A row for each variant and direction of a case."""
    torch._dynamo.reset()  # a case compiles the same functions for other shapes
    draw = Draw(bench.device, torch.Generator(bench.device).manual_seed(0))
    rows, runs = [], {}
    inputs = case.inputs(draw)
    truth, dy = _truth(case, inputs)
    for variant, build in case.variants.items():
        if variant == "inductor" and bench.smoke and bench.device.type == "cpu":
            continue
        name = _name(variant, bench)
        try:
            function = build()
            problem, error = _compare(case, _results(function, inputs, dy=dy), truth)
            prepared = {} if problem else _prepared(case, function, inputs, dy=dy, device=bench.device)
        except Exception as raised:
            problem, error, prepared = one_line(raised), None, {}
        if problem:
            notice(f"WRONG: {case.kernel} {case.label} {name_of(case.dtype)}, {name}: {problem}")
        rows += [
            _row(case, bench, name, direction=direction, problem=problem, error=error) for direction in case.num_bytes
        ]
        runs |= {(name, direction): run for direction, run in prepared.items()}
    times = measure(runs, bench.repeats, bench.device)
    for row in rows:
        found = times.get((row["variant"], row["direction"]))
        if found is not None:
            row |= found
            row["gb_per_s"] = row["bytes"] / row["ms_p50"] / 1e6
            row["bandwidth_share"] = row["gb_per_s"] * 1e9 / bench.bandwidth
    return _with_choice(rows)


def failed_case(case: KernelCase, bench: Bench, error: Exception) -> list[dict[str, Any]]:
    """The rows of a case that could not be measured at all, as when memory does not suffice for its definition."""
    problem = one_line(error)
    notice(f"WRONG: {case.kernel} {case.label} {name_of(case.dtype)}: {problem}")
    return _with_choice(
        [
            _row(case, bench, _name(variant, bench), direction=direction, problem=problem, error=None)
            for variant in case.variants
            for direction in case.num_bytes
        ]
    )


def _name(variant: str, bench: Bench) -> str:
    """What runs: on a CPU our ops are the kernels' PyTorch twins."""
    return "twin" if variant == "triton" and bench.device.type == "cpu" else variant


def _row(
    case: KernelCase, bench: Bench, variant: str, *, direction: Direction, problem: str | None, error: float | None
) -> dict[str, Any]:
    return {
        **bench.base,
        "correct": problem is None,
        "error": problem,
        "relative_error": error,
        "kernel": case.kernel,
        "variant": variant,
        "case": case.label,
        "shape": list(case.shape),
        "layer": case.layer,
        "dtype": name_of(case.dtype),
        "direction": direction,
        **dict.fromkeys(("ms_p20", "ms_p50", "ms_p80", "gb_per_s", "bandwidth_share")),
        "bytes": case.num_bytes[direction],
        "least_bytes": case.least_bytes.get(direction, case.num_bytes[direction]),
        "copy_gb_per_s": bench.bandwidth / 1e9,
    }


def _with_choice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a case with its choice: the fastest, forward and backward together, of inductor and our kernel."""
    totals = {
        variant: sum(row["ms_p50"] for row in rows if row["variant"] == variant)
        for variant in ("triton", "twin", "inductor")
        if any(row["variant"] == variant and row["ms_p50"] is not None for row in rows)
    }
    choice = min(totals, key=lambda variant: totals[variant]) if totals else None
    return [row | {"choice": choice} for row in rows]


def _truth(case: KernelCase, inputs: Inputs) -> tuple[dict[str, Tensor], Tensor | None]:
    """Output and gradients of the definition in float64, and the gradient of y (with a mean, and following y)."""
    wide: Inputs = {
        name: value.detach().double().requires_grad_(value.requires_grad)
        if value is not None and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }
    if "backward" not in case.num_bytes:
        return _results(case.definition, wide, dy=None), None
    y = case.definition(**wide).detach()
    noise = torch.randn(y.shape, generator=torch.Generator(y.device).manual_seed(1), device=y.device)
    # In the dtype of the results, which is float32 for features.
    dtype = case.dtype if y.dim() == 4 else torch.float32
    dy = (0.5 + 0.5 * y + noise).to(dtype)
    dy = dy.contiguous(memory_format=torch.channels_last) if dy.dim() == 4 else dy
    return _results(case.definition, wide, dy=dy), dy


def _results(function: Function, inputs: Inputs, *, dy: Tensor | None) -> dict[str, Tensor]:
    """The output y, and the gradients of all inputs that have one, by name."""
    y = function(**inputs)
    results = {"y": y.detach()}
    if dy is not None:
        leaves = _leaves(inputs)
        gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
        results |= {f"gradient of {name}": value for name, value in zip(leaves, gradients, strict=True)}
    return results


def _leaves(inputs: Inputs) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if value is not None and value.requires_grad}


def _clone(inputs: Inputs) -> Inputs:
    return {
        name: value if value is None else value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in inputs.items()
    }


def _compare(case: KernelCase, results: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[str | None, float]:
    """What is wrong, or None, and the largest relative RMS error of all results."""
    problems, errors = [], []
    for name, right in truth.items():
        if results[name].shape != right.shape:
            return f"{name} has shape {tuple(results[name].shape)}, not {tuple(right.shape)}", float("nan")
        error = float((results[name].double() - right).norm() / right.norm())
        # A float32 result of half-precision inputs is a sum, or nearly: what was rounded in between averages out.
        bound = max(BOUNDS[results[name].dtype], BOUNDS[case.dtype] / 8)
        errors.append(error)
        if not error <= bound:  # NaN is wrong
            problems.append(f"{name} is off by {error:.2g} (relative RMS; allowed: {bound:.2g})")
    return "; ".join(problems) or None, max(errors)


def _prepared(
    case: KernelCase, function: Function, inputs: Inputs, *, dy: Tensor | None, device: torch.device
) -> dict[Direction, Timed]:
    """What is timed in each direction."""
    num_calls = 1
    if device.type == "cuda":
        num_calls = max(1, min(MAX_CALLS, ROTATED_BYTES // case.num_bytes["forward"]))
    sets = [_clone(inputs) for _ in range(num_calls)]
    runs: dict[Direction, Timed] = {
        "forward": prepare(lambda: [partial(function, **tensors) for tensors in sets], device)
    }
    if dy is not None:
        runs["backward"] = prepare(lambda: [_backward(function, tensors, dy) for tensors in sets], device)
    return runs


def _backward(function: Function, inputs: Inputs, dy: Tensor) -> Callable[[], object]:
    """The backward pass, again and again, of a forward pass that this runs once."""
    y = function(**inputs)
    leaves, own_dy = list(_leaves(inputs).values()), torch.empty_like(y).copy_(dy)
    return lambda: torch.autograd.grad(y, leaves, own_dy, retain_graph=True)
