"""Learning rates over training, epoch by epoch as the papers give them."""

import pytest

from fastarat.config import Config, published_code
from fastarat.config.training import ScheduleConfig
from fastarat.training.step.sgd import learning_rate

STEPS = 10  # an epoch
EPOCHS = 100


def rate(settings: ScheduleConfig, epoch: int, step: int = 0) -> float:
    """The rate of a step (from 0) of an epoch (from 1), the peak being 0.1."""
    return learning_rate(settings, 0.1, (epoch - 1) * STEPS + step, steps_per_epoch=STEPS, epochs=EPOCHS)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(1, 0.1), (75, 0.1), (76, 0.01), (90, 0.01), (91, 0.001), (100, 0.001)]
)
def test_the_papers_schedule_drops_at_epochs_76_and_91(epoch, expected):
    for step in (0, STEPS - 1):
        assert rate(Config().schedule, epoch, step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(1, 0.02), (2, 0.1), (76, 0.1), (77, 0.01), (91, 0.01), (92, 0.001), (100, 0.001)]
)
def test_the_published_code_warms_up_for_an_epoch_and_drops_one_epoch_later(epoch, expected):
    for step in (0, STEPS - 1):
        assert rate(published_code(Config()).schedule, epoch, step) == pytest.approx(expected, rel=1e-12)


def test_a_constant_rate_stays():
    assert {rate(ScheduleConfig("constant"), epoch) for epoch in range(1, EPOCHS + 1)} == {0.1}


def test_half_a_cosine_falls_from_the_peak_to_almost_nothing():
    settings = ScheduleConfig("cosine")
    rates = [rate(settings, epoch) for epoch in range(1, EPOCHS + 1)]
    assert rates[0] == 0.1 and rates == sorted(rates, reverse=True)
    assert rate(settings, 51) == pytest.approx(0.05, rel=1e-12)
    assert 0 < rate(settings, EPOCHS, STEPS - 1) < 1e-6


def test_the_cyclic_rate_rises_and_falls_in_straight_lines():
    settings = ScheduleConfig("cyclic", rise=0.4)
    assert rate(settings, 1) == 0
    assert rate(settings, 21) == pytest.approx(0.05, rel=1e-12)
    assert rate(settings, 41) == pytest.approx(0.1, rel=1e-12)
    assert rate(settings, 71) == pytest.approx(0.05, rel=1e-12)
    assert 0 < rate(settings, EPOCHS, STEPS - 1) < 0.1 / 500


@pytest.mark.parametrize("name", ["steps", "cosine", "cyclic", "constant"])
def test_warm_up_holds_a_share_of_the_peak_for_its_epochs(name):
    settings = ScheduleConfig(name, warmup_epochs=2, warmup_factor=0.3)
    for step in range(2 * STEPS):
        assert rate(settings, 1, step) == pytest.approx(0.03, rel=1e-12)
    without = ScheduleConfig(name)
    assert rate(settings, 3) == rate(without, 3)
