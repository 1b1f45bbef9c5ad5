"""Commands in messages can be pasted into a shell, whatever a file is called."""

import shlex
from pathlib import Path

import pytest

from fastarat.common.console import command


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
