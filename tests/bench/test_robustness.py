"""The robustness benchmark trains, measures, writes contract rows, and skips what is done."""

from dataclasses import replace

import pytest

from bench import robustness, tables
from bench.rows import RESULTS, read_rows
from fastarat.recipes import recipe

# design: every row has these, and rows of this benchmark the second line's too.
EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
ROBUSTNESS = {
    *("suite", "method", "fidelity", "model", "seed", "epochs", "checkpoint", "num_images"),
    *("clean", "pgd20", "autoattack", "minutes"),
}


@pytest.fixture
def tiny_suite(monkeypatch):
    """The digits suite, cut to one epoch of few images."""

    def cut(name):
        config = recipe(name)
        attack, evaluation = replace(config.attack, steps=1), replace(config.evaluation, num_images=20, steps=1)
        return replace(config, epochs=1, num_train_images=128, attack=attack, evaluation=evaluation)

    monkeypatch.setattr(robustness, "recipe", cut)
    monkeypatch.setitem(robustness.SUITES, "digits", replace(robustness.SUITES["digits"], num_images=30))


def test_a_suite_writes_a_row_a_training_and_does_not_train_again(tmp_path, tiny_suite, capsys, monkeypatch):
    args = [
        "--suite",
        "digits",
        "--seeds",
        "1",
        "--runs",
        str(tmp_path / "runs"),
        "--rows",
        str(tmp_path / "rows.jsonl"),
    ]
    assert robustness.main(args) == 0
    rows = list(read_rows(tmp_path / "rows.jsonl"))
    assert [row["method"] for row in rows] == ["arat", "at"]
    for row in rows:
        assert row.keys() >= EVERY | ROBUSTNESS
        assert row["correct"] and row["autoattack"] is None
        assert 0 <= row["pgd20"] <= row["clean"] <= 100
    table = capsys.readouterr().out
    assert "digits-arat-seed0" in table and "digits-at-seed0" in table
    assert (tmp_path / "runs" / "digits.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(robustness, "train", lambda *_, **__: pytest.fail("a finished training was repeated"))
    assert robustness.main(args) == 0
    assert list(read_rows(tmp_path / "rows.jsonl")) == rows


def test_the_readmes_tables_are_those_of_the_committed_rows():
    page = tables.README.read_text()
    assert page.count("<!-- table: ") == len(tables.TABLES)
    assert tables.render(page) == page
    assert tables.RESULTS_PAGE.read_text() == tables.results_page()


def test_committed_rows_keep_the_contract():
    rows = list(read_rows(*RESULTS.glob("*.jsonl")))
    assert rows
    for row in rows:
        assert row.keys() >= EVERY
        assert row["commit"] and (row["correct"] or row["error"])
