"""Benchmarks and what they start run without coverage: it would slow what they time, and `bench` is not measured."""

from pathlib import Path

import pytest

from tests.helpers.unmeasured import UNMEASURED

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(autouse=True)
def unmeasured_processes(monkeypatch) -> None:
    for name, value in UNMEASURED.items():
        monkeypatch.setenv(name, value)
