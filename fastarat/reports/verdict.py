"""What a report says first: the result of a run in one sentence, and what there is to doubt."""

from collections.abc import Iterator
from typing import NamedTuple

from fastarat.common.console import command
from fastarat.common.durations import duration
from fastarat.evaluation.accuracies import Accuracy
from fastarat.reports.facts import Facts
from fastarat.reports.published import TITLES
from fastarat.runs.metrics import are_comparable, attack_name, attested, doubts

FEW_IMAGES = 1000
LOST_POINTS = 2.0
"""less robust accuracy than the best epoch's that is worth a warning, if it is beyond chance too"""


def title_of(facts: Facts) -> str:
    """The method as the field writes it."""
    name = facts.config.method.name
    if name == "at" and facts.config.attack.steps == 1:
        return "One-step AT"
    return {"standard": "Standard training", **TITLES}.get(name, name.upper())


def interval_half(percent: float, num_images: int) -> float:
    """Half of a 95 % interval in points, over the choice of images (`Accuracy.interval`)."""
    low, high = Accuracy((round(percent * num_images / 100),), (num_images,)).interval
    return (high - low) / 2


class Measured(NamedTuple):
    """What is known of a run's accuracy, under its own threat model."""

    clean: float
    """percent"""
    robust: float
    """percent"""
    num_images: int
    images: str
    """validation or test"""
    attack: str
    num_unsearched: int
    """robust images that no attack could search"""


def measured(facts: Facts) -> Measured | None:
    """By the strongest evaluation of the deployed weights, else by the training's own."""
    if best := facts.best:
        clean, robust = (100 * float(flags.mean()) for flags in (best.flags["clean"], best.robust))
        return Measured(clean, robust, len(best.labels), "test", best.name, best.num_unsearched)
    if result := facts.result:
        clean, robust, number, images = (result[name] for name in ("clean", "robust", "num_images", "images"))
        return Measured(clean, robust, number, images, attack_name(result), result.get("not_attackable", 0))
    return None


def verdict(facts: Facts) -> str:
    """The run in one sentence."""
    config = facts.config
    what = f"{title_of(facts)} of the net {config.model.name} on {facts.data}"
    found, done = measured(facts), facts.epochs[-1]["epoch"] if facts.epochs else 0
    epochs = f"{done} of {config.epochs} epochs" if done < config.epochs else f"{config.epochs} epochs"
    took = f" in {duration(facts.seconds)}" if facts.seconds is not None else ""
    if found is None:
        return f"{what} has not been evaluated yet{'' if facts.problem else f', after {epochs}{took}'}."
    clean, robust, number, images, attack, num_unsearched = found
    threat = facts.threat
    share = f"{robust:.1f} % of {number:,} {images} images"
    if _is_broken(facts, robust):
        middle = f"is not robust: {attack} ({threat}) leaves {share} right"
    else:
        middle = f"withstands {attack} ({threat}) on {share}"
    if num_unsearched:
        middle += f", {num_unsearched:,} of them without evidence, since no attack could search them"
    trained = "" if facts.problem else f" It trained for {epochs}{took}."
    return f"{what} {middle}; as they are it gets {clean:.1f} % right.{trained}"


def _is_broken(facts: Facts, robust: float) -> bool:
    """Whether attacks leave less than guessing would."""
    best = facts.best
    return robust < (100 / len(best.classes) if best else 1.0)


def warnings_of(facts: Facts) -> list[str]:
    """What there is to doubt, a sentence each, the gravest first."""
    return [
        *(facts.best.warnings if facts.best else ()),
        *_of_training(facts),
        *_of_evaluation(facts),
        *_of_record(facts),
    ]


def _of_training(facts: Facts) -> Iterator[str]:
    if not facts.is_finished:
        goes_on = command("train", "--resume", facts.path)
        yield f"The training has not finished; {goes_on} goes on with it."
    if any(line.get("catastrophic_overfitting") for line in facts.epochs[-1:]):
        yield (
            "The net has overfitted catastrophically: it withstands the one-step attack it was trained with and "
            "nothing else. Go back to an earlier checkpoint, or train with more attack steps."
        )
    held = [line for line in facts.epochs if "evaluation" in line]
    held = [line for line in held if are_comparable(line["evaluation"], held[-1]["evaluation"])]
    if len(held) < 2 or facts.config.num_validation_images:
        return
    best, last = max(held, key=lambda line: attested(line["evaluation"])), held[-1]
    now, then = last["evaluation"], best["evaluation"]
    lost = attested(then) - attested(now)
    if lost > max(LOST_POINTS, interval_half(then["robust"], then["num_images"])):
        yield (
            f"Robust accuracy was {lost:.1f} points higher after epoch {best['epoch']} than at the end: the net learns "
            "its training images by heart (robust overfitting). --num-validation-images keeps the best epoch instead."
        )


def _of_evaluation(facts: Facts) -> Iterator[str]:
    found, best = measured(facts), facts.best
    if found is None:
        return
    clean, robust, number, images, attack, _ = found
    if _is_broken(facts, robust) and facts.config.method.name != "standard":
        yield f"Under {attack} the net is right less often than a guess would be: the training has not made it robust."
    if number < FEW_IMAGES:
        half = max(interval_half(robust, number), interval_half(clean, number))
        yield f"The figures are of {number:,} images: with 95 % confidence each is known to within {half:.1f} points."
    if best is None or not best.is_standard:
        how = command("eval", facts.path, "--attack", "autoattack")
        yield f"Robust accuracy under {attack} is an upper bound; {how} measures it by the standard's attacks."
    own = facts.result
    if best and own and own["images"] == "test" and own["num_images"] >= number and own["robust"] < robust:
        yield f"The training's own evaluation, by {attack_name(own)}, left less: {own['robust']:.1f} % of test images."
    if facts.result and (said := doubts(facts.result)):
        yield f"Some images of the training's own evaluation say nothing{said}."
    if images == "test" and best is None:
        yield "The figures are the training's own, of its last evaluation; the deployed model was not evaluated."


def _of_record(facts: Facts) -> Iterator[str]:
    for session in facts.sessions:
        events = session.get("events")
        for event in events if isinstance(events, list) else []:
            if not str(event).startswith("catastrophic overfitting"):
                yield f"During the training: {event}."
    commits = {str(session.get("commit")) for session in facts.sessions if session.get("commit")}
    if any(commit.endswith("+") for commit in commits):
        yield "The code had changes that are in no commit, so that the commit named below does not repeat it exactly."
    if len(commits) > 1:
        yield f"The sessions of this training ran different versions of the code: {', '.join(sorted(commits))}."
