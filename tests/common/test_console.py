"""Commands in messages can be pasted into a shell, whatever a file is called; a log hears of work that goes on."""

import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastarat.common import console, durations
from fastarat.common.console import command, progress


@pytest.mark.parametrize(
    "name", ["run", "my run", "it's", "a;rm -rf b", "$HOME", "*", "`x`", "back\\slash", "--help me"]
)
def test_a_command_in_a_message_is_the_command_with_this_name(name):
    said = command("eval", name)
    assert said[0] == said[-1] not in said[1:-1].strip() and shlex.split(said[1:-1]) == ["fastarat", "eval", name]


def test_an_ordinary_command_is_in_plain_quotes():
    assert command("eval", "runs/a") == "'fastarat eval runs/a'"


def test_a_path_that_looks_like_a_flag_is_none():
    assert command("eval", Path("-h")) == "'fastarat eval ./-h'" and command("eval", "-h") == "'fastarat eval -h'"


@pytest.fixture
def clock(monkeypatch):
    """Seconds that have gone by, for whoever looks at the clock."""
    at = SimpleNamespace(seconds=0.0, monotonic=lambda: at.seconds)
    for module in (console, durations):
        monkeypatch.setattr(module, "time", at)
    return at


def test_a_log_hears_of_long_work_a_minute_after_it_began_and_then_ever_more_seldom(clock, capsys):
    heard = []
    with progress("attacking", 1000) as advance:
        for _ in range(1000):
            clock.seconds += 10
            advance(1)
            if capsys.readouterr().err:
                heard.append(clock.seconds)
    assert heard[:3] == [60, 120, 180] and 20 < len(heard) < 40  # of 10,000 s
    assert all(b - a >= max(60, 0.1 * a) for a, b in pairwise(heard))


@pytest.mark.parametrize(
    ("total", "kept", "loaded_s", "said"),
    [
        (400, 0, 0, "attacking: 25 %, 6 min 00 s left"),
        (1000, 500, 0, "attacking: 60 %, 8 min 00 s left"),  # what goes on has done half of it in no time
        (1000, 500, 20, "attacking: 60 %, 6 min 40 s left"),  # or in the time that looking it up takes
        (None, 0, 0, "attacking: 2 min 00 s so far"),
    ],
)
def test_it_hears_how_far_the_work_is(clock, capsys, total, kept, loaded_s, said):
    with progress("attacking", total) as advance:
        clock.seconds = loaded_s
        advance(kept)
        for _ in range(100):
            clock.seconds += (120 - loaded_s) / 100
            advance(1)
    assert said in capsys.readouterr().err


def test_the_time_left_is_of_the_later_work_where_the_first_was_slow(clock, capsys):
    with progress("attacking", 1000) as advance:
        for i in range(400):
            clock.seconds += 6 if i < 20 else 1
            advance(1)
    said = [line for line in capsys.readouterr().err.splitlines() if "left" in line]
    assert said[-1] == "attacking: 38 %, 10 min 20 s left"


def test_short_work_is_not_spoken_of(clock, capsys):
    with progress("attacking", 2) as advance:
        clock.seconds = 2
        advance(2)
    assert not capsys.readouterr().err
