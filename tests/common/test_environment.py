"""The commit and the driver that rows and runs name."""

from pathlib import Path

import pytest

from fastarat.common import environment

ROOT = Path(__file__).parents[2]


def test_a_copy_without_history_is_told_its_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "fastarat" / "environment.py"))
    monkeypatch.delenv("FASTARAT_COMMIT", raising=False)
    assert environment.commit() is None
    twelve = "0123456789ab"
    for told in (twelve, f"{twelve}+", f"{twelve}cdef0123456789abcdef01234567", f"{twelve}cdef+"):
        monkeypatch.setenv("FASTARAT_COMMIT", told)
        assert environment.commit() == (f"{twelve}+" if told.endswith("+") else twelve)
    monkeypatch.setenv("FASTARAT_COMMIT", "")
    assert environment.commit() is None


def test_the_driver_is_asked_for_once(monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "_output", lambda command: asked.append(command) or "580.1\n580.1")
    environment._driver.cache_clear()
    assert [environment._driver(), environment._driver()] == ["580.1", "580.1"] and len(asked) == 1
    environment._driver.cache_clear()


def test_a_checkout_with_history_knows_better(monkeypatch):
    if not (ROOT / ".git").exists():
        pytest.skip("this copy has no history")
    monkeypatch.setenv("FASTARAT_COMMIT", "0123456789ab")
    assert environment.commit() != "0123456789ab"
