"""The lines of a run's `metrics.jsonl`: an epoch each, then the average's evaluation if there is one.

Catastrophic overfitting (Wong et al., 2020), training by one-step attacks that ends in a net which withstands nothing
else, shows in them: a run measures these accuracies anyway.
"""

import re
from collections.abc import Sequence
from typing import Any

from fastarat.common.typed import fits
from fastarat.config import Config

EVALUATION = {"images": str, "num_images": int, "steps": int, "clean": float, "robust": float}
DOUBTS = {"not_attackable": int, "undefined_logits": int, "small_logits": bool}
MEASURE = ("num_images", "steps", "attack", "dtype")
"""what evaluations are compared by"""
LATER = {**DOUBTS, "attack": str, "dtype": str, "num_clean_images": int}
"""what an evaluation of an earlier version does not say"""
EVERY_LINE = {"epoch": int, "step": int}
SOME_LINES = {
    **dict.fromkeys(("seconds", "compile_seconds", "evaluation_seconds", "images_per_s", "learning_rate"), float),
    "joules": dict[str, float],
}
"""what a line need not say"""
ATTACK = re.compile(r"\w+ (?P<eps>[\d.e+-]+)/255 by (?P<step>[\d.e+-]+)/255 from (?P<start>[\w-]+)")
"""how an evaluation's attack is written"""
ROUNDING = 1e-5
"""of sizes that are written with 6 digits"""
# Robust overfitting, which is another thing, costs a run a tenth or two of its best robust accuracy on held-out
# images (Rice et al., 2020); who has lost more than half of it, and is right on less than half as many images as
# under the training attack, has not merely learnt its training images by heart.
LOST = 0.5
# Where every evaluation came too late, there is no best to compare with. Between training images under one step and
# held-out images under many the widest ratio of sound trainings is about 5 (CIFAR-100, learnt by heart).
NOTHING_LEFT = 0.1
# Percent: a net that gets fewer right even under its own attack has hardly begun to learn.
LEARNT = 25


def is_line(value: Any) -> bool:
    """Whether a value that was read from a file is such a line, as far as anything here looks at it."""
    if not _holds(value, EVERY_LINE, SOME_LINES):
        return False
    measured = [value[name] for name in ("evaluation", "average") if name in value]
    trained = value.get("train", {"loss": 0.0})
    return all(map(_is_evaluation, measured)) and _holds(trained, {"loss": float}, {"adversarial_accuracy": float})


def attested(evaluation: dict[str, Any]) -> float:
    """What chooses the best epoch: robust accuracy in percent, without the images that no attack could search."""
    return evaluation["robust"] - 100 * evaluation.get("not_attackable", 0) / evaluation["num_images"]


def are_comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two evaluations attacked as many images in the same way and number format, as far as both say it: a run
    that goes on may be evaluated otherwise."""
    return all(one[name] == other[name] for name in MEASURE if name in one and name in other)


def attack_name(evaluation: dict[str, Any]) -> str:
    """The attack of a training's evaluation as people call it, and where it departs from that, in float32 without a
    word: PGD-10; PGD-10, step 0.5/255, bf16."""
    found, departures = ATTACK.fullmatch(evaluation.get("attack", "")), []
    if found:
        eps, step, start = float(found["eps"]), float(found["step"]), found["start"]
        departures += [f"step {step:g}/255"] if abs(step - eps / 4) > ROUNDING * eps else []
        departures += ["ball round the noisy start"] if start == "published-code" else []
    departures += [dtype] if (dtype := evaluation.get("dtype", "fp32")) != "fp32" else []
    return ", ".join((f"PGD-{evaluation['steps']}", *departures))


def accuracies(evaluation: dict[str, Any]) -> str:
    """A training's evaluation in a line: of which images, percent right as they are and under its attack, doubts."""
    of, under = evaluation["images"], f"{attack_name(evaluation)} {evaluation['robust']:.1f} %"
    return f"{of}: clean {evaluation['clean']:.1f} %, {under}{doubts(evaluation)}"


def doubts(evaluation: dict[str, Any]) -> str:
    """What a training's evaluation has to say beside its percentages, in brackets; '' if nothing."""
    number, undefined = (evaluation.get(name, 0) for name in ("not_attackable", "undefined_logits"))
    found = [f"not attackable: {number}"] if number else []
    found += [f"logits NaN or infinite: {undefined}"] if undefined else []
    found += ["small logits: probably too high"] if evaluation.get("small_logits") else []
    return f" ({', '.join(found)})" if found else ""


def may_overfit(config: Config) -> bool:
    """Whether a run can overfit catastrophically, and would show it."""
    return config.attack.steps == 1 and config.evaluation.steps > 1


def has_overfitted(entries: Sequence[dict[str, Any]]) -> bool:
    """Whether the last of these lines of `metrics.jsonl` is of a net that has overfitted catastrophically.

    Percent right on training images under the training attack, one step, is held against that on held-out images
    under the evaluation's many, of which those that no attack could search do not count.
    """
    now = entries[-1]
    one_step = 100 * now["train"].get("adversarial_accuracy", 0.0)
    if "evaluation" not in now or one_step < LEARNT:
        return False
    measured = [entry["evaluation"] for entry in entries if "evaluation" in entry]
    robust = attested(now["evaluation"])
    best = max(attested(one) for one in measured if are_comparable(one, now["evaluation"]))
    return robust < NOTHING_LEFT * one_step or (robust < LOST * best and robust < LOST * one_step)


def overfitting_begins(entries: Sequence[dict[str, Any]]) -> bool:
    """Whether the last line is the first marked one since the net was last seen sound."""
    marks = [bool(entry.get("catastrophic_overfitting")) for entry in entries if "evaluation" in entry]
    return "evaluation" in entries[-1] and marks[-1] and not any(marks[-2:-1])


def overfitting_sentence(entry: dict[str, Any]) -> str:
    """What is said of it, once."""
    one_step, held = 100 * entry["train"]["adversarial_accuracy"], entry["evaluation"]
    return (
        f"catastrophic overfitting at epoch {entry['epoch']}: {one_step:.1f} % right under the training attack's one "
        f"step, {held['robust']:.1f} % under {held['steps']} steps{doubts(held)}; the net is not robust: go back "
        "to an earlier checkpoint, or give a smaller --attack.step-255, --attack.start uniform or more --attack.steps"
    )


def _is_evaluation(value: Any) -> bool:
    return _holds(value, EVALUATION, LATER) and value["num_images"] > 0


def _holds(value: Any, always: dict[str, Any], sometimes: dict[str, Any]) -> bool:
    """Whether a value is a dictionary with what is `always` there, and what it has of them is of these types."""
    if not isinstance(value, dict) or not always.keys() <= value.keys():
        return False
    return all(fits(value[name], kind) for name, kind in (always | sometimes).items() if name in value)
