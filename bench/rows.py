"""Result rows: one JSON line each, with what they were measured on and made from."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastarat.config import Config
from fastarat.files import append_line
from fastarat.record import environment

RESULTS = Path(__file__).parent / "results"


def base_row(benchmark: str, config: Config | dict[str, Any], dataset: str | None, device: str) -> dict[str, Any]:
    """The fields that every row has. `config`: a training's, or all settings of a benchmark that trains nothing."""
    facts = environment()
    names = ("gpu", "driver", "torch", "triton", "commit", "date", "machine", "threads")
    return {
        "benchmark": benchmark,
        "dataset": dataset,
        "device": device,
        **{name: facts[name] for name in names},
        "config": config if isinstance(config, dict) else asdict(config),
    }


def write_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, row)


def read_rows(*paths: Path) -> Iterator[dict[str, Any]]:
    """All rows of these files, in order; a file that is not there has none."""
    for path in paths:
        if path.exists():
            yield from map(json.loads, path.read_text().splitlines())
