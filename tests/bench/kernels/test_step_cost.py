"""What a step costs is counted from what is traced, and the page shows the counts."""

import sys

import pytest
import torch

from bench.common.rows import markdown
from bench.kernels import step_cost
from bench.kernels.step_cost import built, eager_cost
from tests.simulated_gpu import step_table

NAME = "digits-arat"


def test_every_attack_step_costs_the_same_and_the_update_more():
    one, two, three = (eager_cost(built(NAME, 8, steps)) for steps in (1, 2, 3))
    for i in range(2):
        assert three[i] - two[i] == two[i] - one[i] > 0
        assert one[i] > 2 * (two[i] - one[i]) > 0


@pytest.fixture
def page() -> list[list[str]]:
    """The cells of the page's rows: net, form, launches, GB, ms."""
    (table,) = (match[0] for match in step_cost.BLOCK.finditer(step_cost.PAGE.read_text()))
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    return [row.strip("| ").split(" | ") for row in rows]


def test_the_page_shows_every_net_in_every_form(page):
    assert [row[:2] for row in page] == [[net, form] for net in step_cost.RECIPES.values() for form in step_cost.FORMS]


def test_compiling_saves_launches_and_bytes_and_the_fused_kernels_save_bytes_again(page):
    for eager, compiled, fused in (page[i : i + 3] for i in range(0, len(page), 3)):
        assert int(eager[2].replace(",", "")) > 1.5 * int(compiled[2].replace(",", ""))
        assert float(eager[3]) > float(compiled[3]) > float(fused[3])


# The large net's compiled forms take minutes, and go out of date with the small one's.
CHECKED = [
    (name, form) for name in step_cost.RECIPES for form in step_cost.FORMS if "wrn" not in name or form == "eager"
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), CHECKED)
def test_the_pages_counts_are_those_of_this_torch(name, form):
    assert markdown([], [step_cost.row(name, form)]).splitlines()[-1] in step_cost.PAGE.read_text().splitlines()
    assert f"torch {torch.__version__.partition('+')[0]}." in step_cost.PAGE.read_text()


def test_check_changes_nothing_and_says_whether_the_page_is_that_of_today(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(step_cost, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(step_cost, "table", lambda: "the counts\n")
    for counts, code in (("the counts\n", 0), ("other counts\n", 1)):
        text = f"<!-- table: step-cost -->\n{counts}<!-- end -->\n"
        step_cost.PAGE.write_text(text)
        assert step_cost.main(["--check"]) == code and step_cost.PAGE.read_text() == text
    assert "is not up to date: run python -m bench.kernels.step_cost" in capsys.readouterr().err
    assert step_cost.main([]) == 0 and "the counts" in step_cost.PAGE.read_text()


@pytest.mark.parametrize("flag", ["--help", "--chek"])
def test_a_flag_that_asks_for_no_counting_counts_nothing(flag, monkeypatch):
    monkeypatch.setattr(step_cost, "table", lambda: pytest.fail("it counted"))
    with pytest.raises(SystemExit) as stop:
        step_cost.main([flag])
    assert stop.value.code == (0 if flag == "--help" else 2)


def test_the_page_has_what_the_simulated_gpu_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["step_table", "--check"])
    assert step_table.main() == 0
    rows = step_table.ROWS.read_text()
    monkeypatch.setattr(step_table, "ROWS", tmp_path / "steps.jsonl")
    step_table.ROWS.write_text(rows.replace('"nodes": 1594', '"nodes": 1595'))
    assert step_table.main() == 1
