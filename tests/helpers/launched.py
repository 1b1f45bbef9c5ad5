"""A command as one of the processes that a launcher started."""

import os
from pathlib import Path

from fastarat.common import processes
from fastarat.common.ending import ended


def fails_with(error: BaseException) -> int:
    def work() -> int:
        raise error

    return ended("fastarat", work)


def as_launched(monkeypatch, file: Path | None, rank: int, ours: bool) -> None:
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "fastarat"),
        ("RANK", str(rank)),
        ("TORCHELASTIC_ERROR_FILE", str(file or "")),
        (processes.LAUNCHER, str(os.getpid()) if ours else ""),
    ):
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
