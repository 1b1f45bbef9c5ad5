"""Figures are the same whatever the environment says of dates."""

import os

import pytest

from fastarat.common.figures import figure_of


@pytest.mark.parametrize("date", ["abc", "1" * 30, "0"])
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_date_of_the_environment_is_not_read(tmp_path, monkeypatch, date, kind):
    files = [tmp_path / f"{name}.{kind}" for name in ("without", "with")]
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    for file in files:
        with figure_of(file, 1, 1, (2, 2)) as (_, axes):
            axes[0, 0].plot([1, 2])
        monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
    assert files[0].read_bytes() == files[1].read_bytes() and os.environ["SOURCE_DATE_EPOCH"] == date
