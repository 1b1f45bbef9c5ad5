"""What benchmarks start runs without coverage: it would slow what they time, and `bench` is not measured."""

import pytest
from unmeasured import UNMEASURED


@pytest.fixture(autouse=True)
def unmeasured_processes(monkeypatch) -> None:
    for name, value in UNMEASURED.items():
        monkeypatch.setenv(name, value)
