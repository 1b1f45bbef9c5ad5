"""What a step costs is counted from what is traced, and the page shows the counts."""

import pytest
from fastarat_kernels.implementations import TRITON

from bench import step_cost
from bench.step_cost import built, compiled_cost, eager_cost

NAME = "cifar10-tiny-arat"


def test_every_attack_step_costs_the_same_and_the_update_more():
    one, two, three = (eager_cost(built(NAME, 8, steps)) for steps in (1, 2, 3))
    for i in range(2):
        assert three[i] - two[i] == two[i] - one[i] > 0
        assert one[i] > 2 * (two[i] - one[i]) > 0


@pytest.mark.slow
def test_compiling_saves_launches_and_bytes_and_the_fused_kernels_save_bytes_again():
    eager, compiled = eager_cost(built(NAME, 32, 1)), compiled_cost(built(NAME, 32, 1))
    fused = compiled_cost(built(NAME, 32, 1, TRITON))
    assert eager[0] > 2 * compiled[0]
    assert eager[1] > compiled[1] > fused[1]


def test_the_page_shows_every_net_in_every_form():
    page = step_cost.PAGE.read_text()
    (table,) = (match[0] for match in step_cost.BLOCK.finditer(page))
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(step_cost.RECIPES) * len(step_cost.FORMS)


@pytest.mark.slow
def test_the_pages_counts_are_those_of_this_torch():
    assert step_cost.main(["--check"]) == 0


@pytest.mark.parametrize("flag", ["--help", "--chek"])
def test_a_flag_that_asks_for_no_counting_counts_nothing(flag, monkeypatch):
    monkeypatch.setattr(step_cost, "table", lambda: pytest.fail("it counted"))
    with pytest.raises(SystemExit) as stop:
        step_cost.main([flag])
    assert stop.value.code == (0 if flag == "--help" else 2)
