"""A run's `config.json`, out and in."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastarat.common.errors import UserError
from fastarat.common.files import read_json
from fastarat.common.typed import build
from fastarat.config.tree import Config


def to_json(config: Config) -> str:
    """The configuration as JSON, complete."""
    return json.dumps(asdict(config), indent=2) + "\n"


def from_dict(values: dict[str, Any], source: str) -> Config:
    """The configuration that `to_json` wrote. `source` names it in the `UserError` for what does not fit."""
    if not isinstance(values, dict):
        raise UserError(f"{source} holds no configuration")
    return build(Config, values, source)


def load_config(path: Path) -> Config:
    """Read a run's `config.json`. Raises `UserError` if it is none, or holds what no run can have."""
    if not path.exists():
        raise UserError(f"cannot read {path}: it does not exist; is this a run directory?")
    config = from_dict(read_json(path), str(path))
    if problems := config.problems():
        raise UserError(f"{path}: {problems[0]}")
    return config
