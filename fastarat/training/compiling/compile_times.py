"""How long it took to compile a step on this machine, kept beside the compiled code."""

import hashlib
import json
import time
from pathlib import Path
from platform import node
from typing import Any

import torch

from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import write_text
from fastarat.common.json_files import read_json
from fastarat.common.processes import num_cores
from fastarat.common.version import __version__
from fastarat.config import Config
from fastarat.training.compiling.code_folder import cache_folder
from fastarat.training.compiling.compiler_options import FASTER_COMPILATION, NO_LOOP_PATTERNS
from fastarat.training.compiling.decompositions import FILES
from fastarat.training.compiling.toolchain import compiler
from fastarat.training.step.train_step import StepParts

NAME = "seconds.json"
"""the file: for each step the seconds of its first compilation, and of the last one, whose code was kept; how many
times as long as on an idle machine the first one took, and on which machine; and how many times as fast as the eager
step the compiled one is, and when that was measured"""
_KEPT_SHARE = 0.2
"""of a first compilation's time what one takes whose code is kept, until it is measured: 5.5 of 48.8 s, with room"""
_RECENT_S = 3600
_BELIEVED_S = 24 * 3600
"""a gain below 1: a neighbour on the cores may have made it, and a run that stays eager measures none"""


def step_key(parts: StepParts, config: Config, size: tuple[int, int]) -> str:
    """What the code of a step for images of this size (height, width) depends on, as a short word."""
    precision, world = parts.precision, parts.world
    rows = config.batch // world.size
    shape = (config.model, config.method, config.attack.resolved(), config.optimizer, config.sync_bn, rows, size)
    sent = ("bf16",) if config.bf16_gradients else ()
    machine = (node(), torch.get_num_threads(), num_cores(), world.size, precision.device_type)
    compiled_by = (compiler_state(precision.device_type), *_decompositions())
    made_by = (NO_LOOP_PATTERNS, FASTER_COMPILATION, compiled_by, torch.__version__, __version__)
    code = (precision.dtype, parts.kernels.name, *made_by)
    what = (*shape, *sent, *code, *machine)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def compiler_state(device: str) -> str:
    """What tells the compiler for this device from others, and from other versions of itself."""
    path = compiler(device)
    if not path:
        return "none"
    found = Path(path).stat()
    return f"{path} ({found.st_size} bytes, of {found.st_mtime_ns})"


def _decompositions() -> tuple[str, ...]:
    """What tells this state of our decompositions from others."""
    return tuple(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in FILES)


def seconds_to_compile(key: str) -> float | None:
    """How long it will take, by the last time on this machine; None if the step was never compiled here."""
    entry = _kept().get(key)
    try:
        return float(entry["last"] if "last" in entry else entry["first"] * _KEPT_SHARE) if entry else None
    except (KeyError, TypeError, ValueError):
        return None


def gain_of(key: str) -> float | None:
    """How many times as fast as the eager step the compiled one was here, by the last time; None if it is not known, or
    was none and is to be measured anew."""
    entry = _kept().get(key)
    gain, measured = (entry.get(name) if isinstance(entry, dict) else None for name in ("gain", "measured"))
    if not isinstance(gain, int | float) or gain <= 0:
        return None
    is_recent = isinstance(measured, int | float) and time.time() - measured < _BELIEVED_S
    return float(gain) if gain >= 1 or is_recent else None


def keep_gain(key: str, gain: float) -> None:
    """Remember how many times as fast as the eager step the compiled one is."""
    kept = _kept()
    entry = kept.get(key)
    now = {"gain": round(gain, 3), "measured": int(time.time())}
    kept[key] = {**(entry if isinstance(entry, dict) else {}), **now}
    _keep(kept)


def last_slowness() -> float:
    """How many times as long as on an idle machine the last first compilation on this one took; 0 if there was none in
    the last hour: what made it slow has ended by then."""
    entries = [entry for entry in _kept().values() if isinstance(entry, dict) and entry.get("machine") == node()]
    entries = [entry for entry in entries if "slowness" in entry]
    try:
        is_recent = bool(entries) and time.time() - float(entries[-1]["when"]) < _RECENT_S
        return float(entries[-1]["slowness"]) if is_recent else 0.0
    except (KeyError, TypeError, ValueError):
        return 0.0


def keep_seconds(key: str, seconds: float, idle: float | None, *, was_kept: bool = False) -> None:
    """Remember how long it took, where an idle machine takes `idle` seconds at first (None: not known).

    Where the code `was_kept`, by `fastarat tune` or another run, it was no first compilation, though none is on record.
    """
    kept = _kept()
    entry = kept.get(key)
    first = {"first": round(seconds, 2), "when": int(time.time()), "machine": node()}
    if idle is not None:
        first["slowness"] = round(seconds / idle, 2)
    entry = entry if isinstance(entry, dict) else {}
    again = was_kept or bool({"first", "last"} & entry.keys())
    kept[key] = {**entry, **({"last": round(seconds, 2)} if again else first)}
    _keep(kept)


def _keep(kept: dict[str, Any]) -> None:
    """Write it; where the folder cannot be written, the next run will not know."""
    file = _file()
    if file is None:
        return
    try:
        write_text(file, json.dumps(kept, indent=2) + "\n")
    except WorkError:
        return


def _file() -> Path | None:
    folder = cache_folder()
    return folder and folder / NAME


def _kept() -> dict[str, Any]:
    """What is kept; nothing where it is no file of ours: it is written anew then."""
    file = _file()
    try:
        kept = read_json(file) if file else {}
    except UserError:
        return {}
    return kept if isinstance(kept, dict) else {}
