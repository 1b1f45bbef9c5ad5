"""The ladder: from published code to fastarat's default, one change a rung; then what changes the algorithm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.ladder.plain import Mode
from bench.ladder.plain_losses import LOSSES
from bench.ladder.subjects import PlainForm, PlainSubject
from fastarat.common.choice_log import ChoiceLog
from fastarat.config import Config
from fastarat.training.choices import Choices, choose
from fastarat.training.step.precision import Dtype
from fastarat.training.tuning.subject import FastaratSubject, StepSetting, Subject

NEEDS_GPU = "needs a GPU"
PLAIN = ("published", "resident", "channels-last", "bf16", "strong")
NAMES = (*PLAIN, "merged", "fused", "captured", "default", "x-running-bn", "x-fewer-steps")
"""in the ladder's order"""
BASES = ("published", "strong")
"""what the others are compared with"""
MODES: tuple[Mode, ...] = ("default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Variant:
    """What one rung runs. `builds` has several where the fastest of several counts."""

    adds: str
    """what it has that the rung before it has not"""
    builds: Mapping[str, Callable[[StepSetting], Subject]]
    dtype: Dtype
    setting: StepSetting
    """what it trains, other than the ladder's where it changes the algorithm"""
    needs_gpu: bool = False


def ladder_of(setting: StepSetting) -> dict[str, Variant]:
    """All variants by name, slowest first."""
    chosen = choose(setting.config, ChoiceLog(quiet=True), setting.device.type)
    # From `strong` on everything runs in the format that fastarat chooses, which is bf16 on a GPU.
    dtype = chosen.dtype
    half = None if dtype == "fp32" else dtype
    modes = MODES if setting.device.type == "cuda" else MODES[:1]

    def plain(adds: str, form: PlainForm) -> Variant:
        return Variant(adds, {"": partial(PlainSubject, form=form)}, form.half or "fp32", setting)

    def own(adds: str, choices: Choices, of: StepSetting = setting) -> Variant:
        needs_gpu = choices.kernels == "triton" or choices.compile == "graph"
        return Variant(adds, {"": partial(FastaratSubject, choices=choices)}, dtype, of, needs_gpu)

    strong = {mode: partial(PlainSubject, form=PlainForm(half=half, mode=mode)) for mode in modes}
    every = {
        "published": plain("eager fp32, NCHW, 8 PIL workers", PlainForm(True, True, False)),
        "resident": plain("+ data on the device", PlainForm(deterministic=True, channels_last=False)),
        "channels-last": plain("+ channels-last, cuDNN times its algorithms", PlainForm()),
        "bf16": plain("+ bf16", PlainForm(half="bf16")),
        "strong": Variant("+ torch.compile of the net, fused SGD", strong, dtype, setting),
        "merged": own(
            "+ one pass for both halves, compiled step", replace(chosen, kernels="pytorch", compile="compile")
        ),
        "fused": own("+ fused kernels", replace(chosen, kernels="triton", compile="compile")),
        "captured": own("+ CUDA graph", replace(chosen, kernels="triton", compile="graph")),
        "default": own("what fastarat train chooses here", chosen),
        "x-running-bn": own("attack by running statistics", chosen, with_running_statistics(setting)),
        "x-fewer-steps": own("half the attack's steps", chosen, halved(setting)),
    }
    return {name: variant for name, variant in every.items() if name not in left_out(setting.config)}


def left_out(config: Config) -> set[str]:
    """Variants that a method does not have: of ARREST there is no published code, and not every attack can be less."""
    attack, names = config.attack, set[str]()
    if config.method.name not in LOSSES:
        names |= set(PLAIN)
    if attack.steps == 0 or attack.batch_norm == "eval":
        names.add("x-running-bn")
    if attack.steps <= 1:
        names.add("x-fewer-steps")
    return names


def with_running_statistics(setting: StepSetting) -> StepSetting:
    """The attack normalises by the running statistics, and leaves them."""
    return with_attack(setting, batch_norm="eval")


def halved(setting: StepSetting) -> StepSetting:
    """Half the steps, each of twice the size."""
    attack = setting.config.attack
    return with_attack(setting, steps=max(attack.steps // 2, 1), step_255=2 * attack.known_step_255)


def with_attack(setting: StepSetting, **changes: object) -> StepSetting:
    """The setting with these settings of the attack."""
    attack = replace(setting.config.attack, **changes)  # type: ignore[arg-type]
    return replace(setting, config=replace(setting.config, attack=attack))


def fresh_compiler() -> None:
    """Forget what was compiled, and let many forms of one function be compiled, or fail: never silently run eager."""
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 128
    torch._dynamo.config.fail_on_recompile_limit_hit = True
