"""What `fastarat tune` found, kept for this machine, these versions and a recipe's shape; and what a training takes of
it."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import fastarat_kernels
from fastarat_kernels.implementations import can_be_left_out

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.console import command, notice
from fastarat.common.environment import environment
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import write_text
from fastarat.common.json_files import checksum_of, read_json, read_sealed
from fastarat.common.processes import num_cores
from fastarat.common.typed import build, fits
from fastarat.config import Config
from fastarat.data.formats.find import KNOWN, find, place_of
from fastarat.data.images.cache import key_of as state_of
from fastarat.training.choices import Choices
from fastarat.training.compiling.code_folder import cache_folder
from fastarat.training.compiling.compile_times import compiler_state
from fastarat.training.tuning.candidates import open_forms
from fastarat.training.tuning.trial import Tried, fastest

VERSION = 1
_MOST_BYTES = 1 << 20
TUNED = "tuned on this machine"
LEVERS = ("dtype", "kernels", "compile")
"""settings that a recipe leaves open by `auto`"""
_MACHINE = ("processor", "gpu", "driver", "threads", "fastarat", "commit", "python", "torch", "triton")


@dataclass(frozen=True)
class Tuned:
    """All candidates, the plainest first, and how many images an epoch has at most."""

    num_images: int
    tried: list[Tried]
    kernels: dict[str, str] = field(default_factory=dict)
    """what came of each of Triton's, and of each shape of its batch-norm, where they were tried one by one"""
    finished: bool = True
    """no: an interrupted search, which the next call ends; no training takes of it"""


def keep(config: Config, device: str, tuned: Tuned) -> Path | None:
    """Keep it for trainings to come; the file, or None, with a notice, where nothing can be written."""
    key = key_of(config, device)
    place = place_for(key)
    values = {"version": VERSION, "key": key, **asdict(tuned)}
    values["checksum"] = checksum_of(values)
    try:
        if place is None:
            raise WorkError("this user has no cache directory")
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(values, indent=1) + "\n")
    except (OSError, WorkError) as error:
        notice(f"what was tuned is not kept ({error}): set TORCHINDUCTOR_CACHE_DIR to a folder for it")
        return None
    return place


def kept(config: Config, device: str) -> Tuned | None:
    """What was kept for exactly this; None if nothing was, or, with a notice, if it cannot be read."""
    key = key_of(config, device)
    place = place_for(key)
    if place is None or not os.path.lexists(place):
        return None
    try:
        return _checked(read_sealed(place, VERSION, fix="it is left aside", most_bytes=_MOST_BYTES), key, str(place))
    except UserError as error:
        notice(f"what was tuned: {error}; {command('tune', config.recipe)} with these settings makes it anew")
        return None


def tuned_choices(config: Config, device: str, log: ChoiceLog) -> Choices | None:
    """The form by which this training ends first, by what was tuned; None if nothing was that fits.

    What the configuration names wins: among the forms that were tried only those count that have it. Several processes
    share their cores and wait for each other, which no trial has measured. Raises `UserError` as `candidates` does.
    """
    if config.num_processes > 1 or all(getattr(config, name) != "auto" for name in LEVERS):
        return None
    as_left_open = replace(config, **dict.fromkeys(LEVERS, "auto"))
    tables = (kept(one, device) for one in (config, as_left_open))
    tuned = next((table for table in tables if table and table.finished), None)
    if tuned is None:
        _say_that_it_was_elsewhere(config, device)
        return None
    forms = open_forms(config, device)
    usable = [one for one in tuned.tried if _is_open(one.form, config, forms)]
    num_images = config.epochs * (config.num_train_images or tuned.num_images)
    best = fastest(tuned.tried, num_images, usable)
    if best is None:
        return None
    return _told(best.form, config, log, f"{TUNED}, times the plainest step's speed: {best.ratio_text}")


def _say_that_it_was_elsewhere(config: Config, device: str) -> None:
    """A notice where this shape was tuned, but by other versions or on another machine."""
    keys = [key_of(one, device) for one in (config, replace(config, **dict.fromkeys(LEVERS, "auto")))]
    folder = cache_folder()
    for place in sorted((folder / "tuned").glob("*.json")) if folder else ():
        try:
            found = read_json(place, _MOST_BYTES)
        except UserError:
            continue
        key = found.get("key") if isinstance(found, dict) else None
        if not isinstance(key, dict) or not isinstance(key.get("machine"), dict):
            continue
        here, there = keys[0]["machine"], key["machine"]
        name = next((name for name in here if there.get(name) != here[name]), None)
        if name and key.get("shape") in [one["shape"] for one in keys]:
            was, now = there.get(name), here[name]
            anew = f"{command('tune', config.recipe)} with these settings tunes anew"
            notice(f"tuned with {name} {was!r}, now {now!r}: {anew}")
            return


def _is_open(form: Choices, config: Config, forms: Sequence[Choices]) -> bool:
    """Whether it is one of these `forms`, but for kernels that it does without where those are open."""
    are_open = config.kernels == "auto" and all(map(can_be_left_out, form.without))
    return replace(form, without=()) in forms and (are_open or not form.without)


def _told(form: Choices, config: Config, log: ChoiceLog, why: str) -> Choices:
    """Note what of the form was open."""
    for name in LEVERS:
        if getattr(config, name) == "auto":
            log.choose(name, form.computed_by if name == "kernels" else getattr(form, name), why)
    for name in ("threads", "stem_channels"):
        if value := getattr(form, name):
            log.choose(name.replace("_", " "), str(value), why)
    return form


def key_of(config: Config, device: str) -> dict[str, Any]:
    """Machine, versions and shape: what a step's speed depends on. Raises `UserError` if the data are not there."""
    here, config = environment(), config.resolved()
    shape = {
        **{name: asdict(getattr(config, name)) for name in ("model", "method", "attack")},
        **{name: getattr(config, name) for name in ("batch", "size", *LEVERS)},
        "start_size": config.augment.start_size,
        "optimizer": config.optimizer.name,
        "device": device,
        "data": place_of(config.data),
        "state of the data": _state_of_data(config.data),
    }
    machine = {name: here[name] for name in _MACHINE}
    machine |= {"sources": _sources(here["commit"]), "compiler": compiler_state(device), "cores": num_cores()}
    return json.loads(json.dumps({"machine": machine, "shape": shape}))


def _state_of_data(data: str) -> str:
    """What changes where other images come to lie at the same place, which may have another size; empty for sets that
    are always the same. Nothing is opened for it."""
    if data in KNOWN:
        return ""
    path = find(data).path
    inside = sorted(entry for entry in path.iterdir() if entry.exists()) if path.is_dir() else []
    return state_of([path, *inside])


def _sources(commit: str | None) -> str:
    """A digest of what runs, where the commit does not tell it; empty where it does."""
    if commit and not commit.endswith("+"):
        return ""
    digest = sha256()
    for package in (Path(__file__).parents[2], Path(fastarat_kernels.__path__[0])):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def place_for(key: dict[str, Any]) -> Path | None:
    """The file of this key, beside the compiled code; None where this user has no cache directory."""
    folder = cache_folder()
    name = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return folder and folder / "tuned" / f"{name}.json"


def _checked(values: dict[str, Any], key: dict[str, Any], source: str) -> Tuned:
    """Raises `UserError`, which begins with `source`, for a table of something else, or in which a value cannot be."""
    number, entries = values.get("num_images"), values.get("tried")
    if values.get("key") != key:
        raise UserError(f"{source} belongs to something else")
    if type(number) is not int or number < 1 or not isinstance(entries, list) or not entries:
        raise UserError(f"{source} has no candidates")
    tried = [build(Tried, entry if isinstance(entry, dict) else {}, source) for entry in entries]
    for one in tried:
        if one.ready_s < 0 or one.images_per_s < 0 or min(one.ratio) <= 0:
            raise UserError(f"{source} has a candidate of an impossible speed")
    if tried[0].problem is not None or tried[0].images_per_s <= 0:
        raise UserError(f"{source} has no speed of the plainest form")
    kernels, finished = values.get("kernels", {}), values.get("finished", True)
    if not fits(kernels, dict[str, str]) or not fits(finished, bool):
        raise UserError(f"{source} says of kernels, or of its end, what does not fit")
    return Tuned(number, tried, kernels, finished)
