"""What a model got right, image by image, kept in its run so that runs can be compared over the same images."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastarat.common.console import notice
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import as_file_name, write_text
from fastarat.common.json_files import read_json
from fastarat.common.typed import fits
from fastarat.config.attack import ROUNDING_255, reach_255
from fastarat.config.evaluation import NUM_TARGETS, STANDARD, EvaluationSettings
from fastarat.data.images.dataset import Dataset, Images, fingerprint
from fastarat.evaluation.result import Evaluation

FORMAT = 2
FEW_IMAGES = 100
"""below which an evaluation says less the fewer they are, whatever its attack: half of their interval is 10 points"""
USUAL_STEPS = EvaluationSettings.steps
SEARCH_STEPS = 100
"""gradient steps of a search of an APGD or FAB"""
FOLDER = "outcomes"
"""in a run's directory"""
TYPES: dict[str, Any] = {
    "attack": dict,
    "data": str,
    "set_fingerprint": str,
    "set_labels": str,
    "images": str,
    "weights": str,
    "classes": tuple[str, ...],
    "labels": tuple[int, ...],
    "flags": dict[str, str],
    "unsearched": str,
    "warnings": tuple[str, ...],
}
ATTACK_TYPES: dict[str, Any] = {"attacks": tuple[str, ...], "norm": str, "eps_255": float, "dtype": str}
SIZES: dict[str, Any] = {"steps": int, "restarts": int, "step_255": float, "targets": int}
"""what only some attacks have"""


@dataclass(frozen=True)
class Outcomes:
    """One complete evaluation of a run's deployed weights on N images."""

    attack: dict[str, Any]
    """what `described` says of the settings"""
    data: str
    """the data set's name"""
    set_fingerprint: str
    """of the whole data set"""
    set_labels: str
    """of the whole data set's labels, the same whether its images are decoded or not"""
    images: str
    """fingerprint of the N images and their labels, in their order"""
    weights: str
    """SHA-256 of the file that the weights were read from"""
    classes: tuple[str, ...]
    labels: np.ndarray
    """int64 [N]"""
    flags: dict[str, np.ndarray]
    """which images are right: bool [N], after `clean` and after each attack"""
    unsearched: np.ndarray
    """which images are robust in the end and no attack could search: bool [N]"""
    warnings: tuple[str, ...]
    """why the numbers may say too much, a sentence each"""
    beside: tuple[str, ...] = ()
    """names of further evaluations of the same images whose breaks count too; none of what is kept"""

    @property
    def key(self) -> str:
        """The same for two evaluations that can be compared: of the same images, by the same attack."""
        return hashlib.sha256(json.dumps([self.attack, self.images], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def robust(self) -> np.ndarray:
        """Which images are right after all attacks: bool [N]."""
        return list(self.flags.values())[-1]

    @property
    def num_unsearched(self) -> int:
        """How many of the robust images no attack could search."""
        return int(self.unsearched.sum())

    @property
    def name(self) -> str:
        """The attack as people call it, with where it departs from that: AutoAttack, PGD-20, AutoAttack, 1 target; and
        what counts beside it."""
        own = ", ".join((short_name(self.attack), *departures(self.attack, len(self.classes))))
        return " and ".join((own, *self.beside))

    @property
    def is_standard(self) -> bool:
        """Whether it says all that the standard AutoAttack says."""
        attack, full = self.attack, _full(len(self.classes))
        is_whole = set(STANDARD) <= set(attack["attacks"]) and attack.get("targets", 0) >= full
        return is_whole and attack["dtype"] == "fp32"

    @property
    def strength(self) -> tuple[float, ...]:
        """Grows with what the evaluation says: enough images first, then the kind of its strongest attack, gradient
        steps over all attacks, float32, attacks, images."""
        attack = self.attack
        enough, is_fp32 = min(len(self.labels), FEW_IMAGES), attack["dtype"] == "fp32"
        return enough, self._kind, self._gradient_steps, is_fp32, len(attack["attacks"]), len(self.labels)

    @property
    def _kind(self) -> int:
        """Of the strongest attack: the standard, a whole APGD-T, an APGD, a PGD that can cross the ball, the rest."""
        attack, names = self.attack, set(self.attack["attacks"])
        reach = reach_255(attack.get("steps", 0), attack.get("step_255", 0))
        kinds = (
            self.is_standard,
            "apgd-t" in names and attack.get("targets", 0) >= _full(len(self.classes)),
            bool({"apgd-ce", "apgd-t"} & names),
            bool({"pgd", "cw"} & names) and reach >= 2 * attack["eps_255"],
            True,
        )
        return len(kinds) - kinds.index(True)

    @property
    def _gradient_steps(self) -> int:
        """That an image may take, over all attacks."""
        attack = self.attack
        of_pgd = attack.get("steps", 0) * attack.get("restarts", 1)
        targeted = SEARCH_STEPS * min(attack.get("targets", 0), len(self.classes) - 1)
        taken = {"pgd": of_pgd, "cw": of_pgd, "apgd-ce": SEARCH_STEPS, "apgd-t": targeted, "fab-t": targeted}
        return sum(taken.get(name, 0) for name in attack["attacks"])

    def per_class(self, stage: str) -> list[float | None]:
        """Percent right for each class after a stage; None for a class without images."""
        total = np.bincount(self.labels, minlength=len(self.classes))
        right = np.bincount(self.labels[self.flags[stage]], minlength=len(self.classes))
        return [100 * float(r) / float(t) if t else None for r, t in zip(right, total, strict=True)]


def described(settings: EvaluationSettings) -> dict[str, Any]:
    """What two evaluations must share to be compared: all but seed, batch and engine."""
    names = settings.names
    found: dict[str, Any] = {"attacks": list(names), "norm": settings.norm, "eps_255": round(255 * settings.eps, 6)}
    if {"pgd", "cw"} & set(names):
        found |= {
            "steps": settings.steps,
            "step_255": round(255 * settings.step_size, 6),
            "restarts": settings.restarts,
        }
    if {"apgd-t", "fab-t"} & set(names):
        found["targets"] = settings.targets
    return {**found, "dtype": settings.dtype}


def short_name(attack: dict[str, Any]) -> str:
    """The attack that `described` describes as people call it, wherever it departs from that."""
    names = tuple(attack["attacks"])
    if names == STANDARD:
        return "AutoAttack"
    steps = f"-{attack['steps']}" if names in (("pgd",), ("cw",)) else ""
    return ",".join(names).upper() + steps if steps else ",".join(names)


def departures(attack: dict[str, Any], num_classes: int) -> list[str]:
    """Where it departs from what its name says to people, a phrase each."""
    found, full = [], _full(num_classes)
    targets, restarts = attack.get("targets", full), attack.get("restarts", 1)
    if targets != full:
        found.append(f"{targets} target{'s' if targets > 1 else ''}")
    if len(attack["attacks"]) > 1 and (steps := attack.get("steps", USUAL_STEPS)) != USUAL_STEPS:
        found.append(f"PGD of {steps} step{'s' if steps > 1 else ''}")
    if restarts > 1:
        found.append(f"{restarts} restarts")
    if "step_255" in attack and abs(attack["step_255"] - attack["eps_255"] / 4) > ROUNDING_255:
        found.append(f"step {attack['step_255']:g}/255")
    if attack["dtype"] != "fp32":
        found.append(attack["dtype"])
    return found


def _full(num_classes: int) -> int:
    """The targets of the standard: 9, or all wrong classes where there are fewer."""
    return min(NUM_TARGETS, num_classes - 1)


def weights_digest(run: Path) -> str:
    """SHA-256 of a run's deployed weights; '' where it has none."""
    file = run / "model.safetensors"
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def outcomes_of(
    evaluation: Evaluation, settings: EvaluationSettings, dataset: Dataset, chosen: Images, weights: str
) -> Outcomes:
    """Those of a complete evaluation by these settings, on the images that were chosen of a data set's."""
    return Outcomes(
        described(settings),
        dataset.name,
        dataset.fingerprint,
        dataset.labels_fingerprint,
        fingerprint(chosen),
        weights,
        dataset.classes,
        evaluation.labels.numpy(),
        {name: flags.numpy() for name, flags in evaluation.flags.items()},
        evaluation.unsearched.numpy(),
        evaluation.warnings,
    )


def keep(run: Path, outcomes: Outcomes) -> None:
    """Write the outcomes into the run, in place of earlier ones of the same attack and images.

    Raises `WorkError` if they are not of the weights that the run deploys now, or cannot be written.
    """
    if not outcomes.weights or weights_digest(run) != outcomes.weights:
        raise WorkError(f"{run} deploys other weights than were evaluated: evaluate it once it has finished")
    folder = run / FOLDER
    name = (
        f"{as_file_name(short_name(outcomes.attack).lower())}-{outcomes.attack['norm']}-{outcomes.attack['eps_255']:g}"
    )
    values = {
        "format": FORMAT,
        **{name: getattr(outcomes, name) for name in TYPES},
        "labels": outcomes.labels.tolist(),
        "flags": {stage: _bits(flags) for stage, flags in outcomes.flags.items()},
        "unsearched": _bits(outcomes.unsearched),
    }
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{name}-{outcomes.key}.json", json.dumps(values) + "\n")


def kept(run: Path) -> list[Outcomes]:
    """All that are of the run's present weights, the strongest first; others are left out, with a notice for what no
    evaluation has written."""
    found, weights = [], weights_digest(run)
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            outcomes = _read(path)
        except UserError as error:
            notice(f"{error}: left out")
            continue
        if outcomes.weights == weights:
            found.append(outcomes)
    return sorted(found, key=lambda outcomes: outcomes.strength, reverse=True)


def _read(path: Path) -> Outcomes:
    """Raises `UserError` for a file that `keep` has not written."""
    values = read_json(path)
    wrong = UserError(f"{path} holds no outcomes of this version")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise wrong
    if not all(name in values and fits(values[name], kind) for name, kind in TYPES.items()):
        raise wrong
    attack, labels, flags = values["attack"], values["labels"], values["flags"]
    fields_fit = all(name in attack and fits(attack[name], kind) for name, kind in ATTACK_TYPES.items())
    fields_fit = fields_fit and all(fits(attack[name], kind) for name, kind in SIZES.items() if name in attack)
    every = (*flags.values(), values["unsearched"])
    bits_fit = all(len(bits) == len(labels) and not set(bits) - {"0", "1"} for bits in every)
    if not (labels and fields_fit and bits_fit and next(iter(flags), "") == "clean"):
        raise wrong
    if not all(0 <= label < len(values["classes"]) for label in labels):
        raise wrong
    return Outcomes(
        **{name: values[name] for name in ("attack", "data", "set_fingerprint", "set_labels", "images", "weights")},
        classes=tuple(values["classes"]),
        labels=np.array(labels, np.int64),
        flags={stage: _from_bits(bits) for stage, bits in flags.items()},
        unsearched=_from_bits(values["unsearched"]),
        warnings=tuple(values["warnings"]),
    )


def _bits(flags: np.ndarray) -> str:
    return "".join("01"[int(flag)] for flag in flags)


def _from_bits(bits: str) -> np.ndarray:
    return np.frombuffer(bits.encode(), np.uint8) == ord("1")
