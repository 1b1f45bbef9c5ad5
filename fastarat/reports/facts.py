"""What a run's directory says of it, read once for its report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from fastarat.common.console import notice
from fastarat.common.errors import UserError
from fastarat.common.json_files import read_json
from fastarat.config import Config, by_flag, recipes
from fastarat.data.images.stored import STORED
from fastarat.evaluation.outcomes import Outcomes, kept
from fastarat.evaluation.significance import shared
from fastarat.evaluation.worst_case import worst_case
from fastarat.runs.run import Run

NO_RESULT = (
    *("seed", "recipe", "device", "loader", "loading.workers", "loading.decode", "loading.corrupt"),
    *("checkpoint.every-s", "checkpoint.notice", "checkpoint.keep", "checkpoint.history"),
)
"""settings that change no result"""
BY_RECORD = ("data", "extra.data", "dtype")
"""settings for which the record counts: where images lie says nothing of them, and what `auto` takes nothing of one"""


@dataclass(frozen=True)
class Facts:
    """A run as its report needs it."""

    path: Path
    name: str
    """what it is called among the runs of a report"""
    config: Config
    lines: list[dict[str, Any]]
    """of `metrics.jsonl`; none if it cannot be read"""
    sessions: list[dict[str, Any]]
    """of `record.json`"""
    outcomes: list[Outcomes]
    """evaluations of its present weights, the strongest first"""
    analysis: dict[str, Any] | None
    profile: dict[str, Any] | None
    result: dict[str, Any] | None
    """the training's own evaluation of what it deployed"""
    problem: str = ""
    """why `metrics.jsonl` cannot be read; empty if it can"""

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines that are epochs."""
        return [line for line in self.lines if "train" in line]

    @property
    def own_outcomes(self) -> list[Outcomes]:
        """Evaluations on the run's own data under its own threat model, the strongest first."""
        threat = (self.config.attack.norm, round(self.config.eps_255, 6))
        same = (of for of in self.outcomes if (of.attack["norm"], of.attack["eps_255"]) == threat)
        return list(filter(self.is_of_own_data, same))

    @cached_property
    def best(self) -> Outcomes | None:
        """What the evaluations of the deployed weights on the run's own data under its own threat model leave."""
        return worst_case(self.own_outcomes)

    def is_of_own_data(self, outcomes: Outcomes) -> bool:
        """Whether an evaluation took the run's own data set, whatever it was called."""
        return _are_one_set(self._data_set, (outcomes.data, outcomes.set_fingerprint, outcomes.set_labels))

    def can_stand_beside(self, other: "Facts") -> bool:
        """Whether another run is of the same data set and threat model."""
        return self.threat == other.threat and _are_one_set(self._data_set, other._data_set)

    @property
    def threat(self) -> str:
        """The threat model as people write it."""
        return threat_named(self.config.attack.norm, self.config.eps_255)

    @property
    def _data_set(self) -> tuple[str, str, str]:
        """Name, fingerprint, and that of the labels."""
        return self.data, self.data_fingerprint, str(self._recorded_data.get("labels_fingerprint", ""))

    @property
    def _extra_set(self) -> tuple[str, str, str]:
        """The same of the images that it trained on in addition; empty where there were none. Their labels have no
        fingerprint."""
        recorded = self.last_session.get("extra")
        recorded = recorded if isinstance(recorded, dict) else {}
        given = self.config.extra.data
        name = recorded.get("name") or (Path(given).name if given else "")
        return str(name), str(recorded.get("fingerprint", "")), ""

    def is_of_images_of(self, other: "Facts") -> bool:
        """Whether another run trained on the same images, wherever they lay."""
        return _are_one_set(self._data_set, other._data_set) and _are_one_set(self._extra_set, other._extra_set)

    @property
    def dtype(self) -> str:
        """The number format that it was trained in; where a session went on in another, each of them."""
        found = dict.fromkeys(str(session["dtype"]) for session in self.sessions if "dtype" in session)
        return ", then ".join(found) or self.config.dtype

    @property
    def is_finished(self) -> bool:
        """Whether the last epoch is done, as far as lines tell, and its weights deployed."""
        last = self.epochs[-1]["epoch"] if self.epochs else 0
        is_done = bool(self.problem) or last >= self.config.epochs
        return is_done and (self.path / "model.safetensors").exists()

    @property
    def last_session(self) -> dict[str, Any]:
        """What was recorded of the session that trained last."""
        return self.sessions[-1] if self.sessions else {}

    @property
    def data(self) -> str:
        """The data set's name, without its place."""
        return str(self._recorded_data.get("name") or Path(self.config.data).name)

    @property
    def data_fingerprint(self) -> str:
        """Of its images; empty where none is recorded."""
        return str(self._recorded_data.get("fingerprint", ""))

    @property
    def num_test_images(self) -> int | None:
        """Of its data set; None where it is not recorded."""
        found = self._recorded_data.get("test_images")
        return found if isinstance(found, int) and found > 0 else None

    @property
    def _recorded_data(self) -> dict[str, Any]:
        recorded = self.last_session.get("data")
        return recorded if isinstance(recorded, dict) else {}

    @property
    def seconds(self) -> float | None:
        """What the training took, evaluations left out."""
        return next((line["seconds"] for line in reversed(self.lines) if "seconds" in line), None)

    @property
    def images_per_s(self) -> float | None:
        """The median of the epochs'."""
        found = [line["images_per_s"] for line in self.epochs if "images_per_s" in line]
        return median(found) if found else None

    def total(self, name: str) -> float:
        """The sum of what the epochs took of one kind, in seconds."""
        return sum(line.get(name, 0.0) for line in self.lines)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by its flag's name."""
        return by_flag(self.config)

    @property
    def settings_but_seed(self) -> dict[str, Any]:
        """What is the same for runs that differ by their seeds alone, or by what changes no result; its images left
        out, which `is_of_images_of` compares. One that has not finished is like those that are as far."""
        found = {name: value for name, value in self.settings.items() if name not in (*NO_RESULT, *BY_RECORD)}
        if not self.is_finished:
            found["epochs done"] = self.epochs[-1]["epoch"] if self.epochs else 0
        return {**found, "dtype": self.dtype}

    def changed_settings(self) -> dict[str, tuple[Any, Any]]:
        """Settings that differ from the recipe's: the recipe's value, and the run's. None where it is not known, or
        follows from another."""
        try:
            recipe = recipes.recipe(self.config.recipe, self.config.fidelity)
        except UserError:
            return {}
        theirs, mine = by_flag(recipe.following()), by_flag(self.config.following())
        own = {"recipe", "data"}
        other = {name for name, value in mine.items() if theirs.get(name) != value}
        if "attack.norm" in other:  # with which a recipe's sizes are left out
            other |= {name for name in mine if name.endswith("-255")}
        return {name: (theirs.get(name), value) for name, value in self.settings.items() if name in other - own}


def threat_named(norm: str, eps_255: float) -> str:
    """A ball as people write it."""
    return f"{'L∞' if norm == 'linf' else 'L2'}, radius {eps_255:g}/255"


def _are_one_set(one: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
    """Whether two data sets are the same by their images; by their labels where one was stored and one decoded; by
    their names where one has no fingerprint to be compared."""
    (name, images, labels), (other_name, other_images, other_labels) = one, other
    if images and other_images and images.startswith(STORED) == other_images.startswith(STORED):
        return images == other_images
    if images and other_images and labels and other_labels:
        return labels == other_labels
    return name == other_name


def facts_of(path: Path, name: str) -> Facts:
    """Read a run. Raises `UserError` if it is none, or its configuration or record is damaged; damaged metrics are left
    out."""
    run = Run(path)
    config, lines, result, problem = run.config(), [], None, ""
    try:
        lines, result = run.metrics(), run.result()
    except UserError as error:
        problem = str(error)
        notice(f"{problem}; without it there are no curves")
    return Facts(
        path,
        name,
        config,
        lines,
        run.sessions(),
        kept(path),
        _json(path / "analysis" / "analysis.json", {"states", "summary", "surface", "method", "model", "data", "run"}),
        _json(path / "profile" / "profile.json", {"roofs", "parts"}),
        result,
        problem,
    )


def shared_outcomes(runs: Sequence[Facts]) -> dict[str, Outcomes] | None:
    """The strongest evaluation that all runs have kept, by run: one under their own threat model on their own data,
    another only if they share none such."""
    own = shared({run.name: run.own_outcomes for run in runs})
    return own or shared({run.name: run.outcomes for run in runs})


def settings_and_seeds(runs: Sequence[Facts]) -> dict[str, tuple[str, int]]:
    """For each run what is the same for those that differ by their seeds alone, their images included; and its seed."""
    found = {}
    for run in runs:
        images = next(place for place, other in enumerate(runs) if run.is_of_images_of(other))
        found[run.name] = json.dumps([images, run.settings_but_seed], sort_keys=True), run.config.seed
    return found


def names_of(paths: list[Path]) -> list[str]:
    """The folders' own names, with as many parents as tell them apart."""
    places = [path.resolve() for path in paths]
    for count in range(1, max(len(path.parts) for path in places) + 1):
        names = ["/".join(path.parts[-count:]) for path in places]
        if len(set(names)) == len(names):
            return names
    raise UserError("a run is given twice: give each once")


def _json(path: Path, names: set[str]) -> dict[str, Any] | None:
    """A file that another command wrote, if it is there and has these entries."""
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except UserError:
        return None
    return found if isinstance(found, dict) and names <= found.keys() else None
