"""A ladder's result rows: speeds, shares of the machine's roofs, and ratios turn by turn."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from bench.common.inputs import method_of
from bench.common.rows import base_row
from bench.common.timing import percentiles
from bench.ladder.turns import Rung
from bench.ladder.variants import BASES
from fastarat.common.choice_log import ChoiceLog
from fastarat.common.distributed import World
from fastarat.common.turns import ratio_of
from fastarat.training.build import build_training
from fastarat.training.choices import choose_dtype
from fastarat.training.profiling.cost import Cost, added, step_cost
from fastarat.training.tuning.subject import StepSetting

PEAK_FLOPS = 790e12
"""bf16 matrix products of an H200 on random data: what `mfu` is a share of, on any GPU"""


def cost_of(setting: StepSetting) -> Cost:
    """FLOP of a step by the definition, and the bytes that it moves at least, in the format that fastarat chooses."""
    # Counted on a CPU, wherever it runs: that needs no memory of the GPU.
    dtype = choose_dtype(setting.config, setting.device.type, ChoiceLog(quiet=True))
    training = build_training(setting.config, setting.dataset, World(torch.device("cpu")), dtype=dtype)
    return added(*step_cost(training, fused=True).values())


def row_of(
    rung: Rung, rungs: Sequence[Rung], cost: Cost, *, bandwidth: float, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of a variant: what it is, and if it is right and was timed its speeds."""
    setting, verdict = rung.variant.setting, rung.verdict
    config = setting.config
    described = {**asdict(config.resolved()), "benchmark": dict(settings)}
    row = {
        **base_row("throughput", described, setting.dataset.name, device=setting.device.type),
        "correct": rung.problem is None,
        "error": rung.problem,
        "errors": verdict.errors if verdict else None,
        "method": method_of(config.recipe),
        "model": config.model.name,
        "variant": rung.name,
        "adds": rung.variant.adds,
        "batch": config.batch,
        "dtype": rung.variant.dtype,
        "attack_steps": config.attack.steps,
        "compile_mode": rung.form or None,
        "modes": rung.forms if len(rung.variant.builds) > 1 else None,
        "ready_s": rung.ready_seconds or None,
        "launches": None,
        "peak_memory_gb": rung.peak_memory,
        "copy_gb_per_s": bandwidth / 1e9,
        **dict.fromkeys(("images_per_s", "ms_p20", "ms_p50", "ms_p80", "mfu", "bandwidth_share", "ratios")),
    }
    return row | _speeds(rung, rungs, cost, bandwidth=bandwidth) if rung.problem is None and rung.rates else row


def _speeds(rung: Rung, rungs: Sequence[Rung], cost: Cost, *, bandwidth: float) -> dict[str, Any]:
    rate = median(rung.rates)
    steps_per_s = rate / rung.variant.setting.config.batch
    on_gpu = rung.variant.setting.device.type == "cuda"
    return {
        "images_per_s": rate,
        **percentiles("ms", rung.step_ms),
        # The definition's work, however a variant does it; x-variants do less, and their share would say nothing.
        "mfu": cost.flops * steps_per_s / PEAK_FLOPS if on_gpu and not rung.name.startswith("x-") else None,
        "bandwidth_share": None if rung.name.startswith("x-") else cost.bytes * steps_per_s / bandwidth,
        "ratios": {base.name: ratio_of(rung.rates, base.rates) for base in rungs if base.name in BASES and base.rates},
    }
