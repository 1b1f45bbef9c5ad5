"""The walks of docs/architecture.md: every file and every name that they tell of is there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()
STOP = re.compile(r"`([\w/]+\.py)(?::\s+([\w.]+))?`")
"""`FILE`, or `FILE: NAME` where NAME is a function, a class, a method as CLASS.METHOD, or a constant"""
WALKS = re.split(r"^## Walk: .*$", PAGE, flags=re.MULTILINE)[1:]


def names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """What a module defines, and what its classes do."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from names(node.body, f"{node.name}.")
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize(("file", "name"), STOP.findall(PAGE))
def test_a_stop_of_a_walk_is_there(file, name):
    tree = ast.parse((ROOT / file).read_text())
    assert not name or name in names(tree.body)


def test_each_walk_is_short_and_every_step_names_file_and_function():
    assert len(WALKS) == 3
    for walk in WALKS:
        steps = re.findall(r"^\d+\. .*(?:\n   .*)*", walk, re.MULTILINE)
        assert 5 <= len(steps) <= 10
        assert all(any(name for _, name in STOP.findall(step)) for step in steps)
