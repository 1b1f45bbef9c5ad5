"""What the launcher takes of torch without its promise is there, and nothing else is taken."""

import importlib
import inspect
import pkgutil
import re

import pytest
import torch

from fastarat.training.launching import agent, meeting
from fastarat.training.launching.torch_private import LATEST, NAMES, OLDEST, OVERRIDDEN, USED

BY_CLASS = [(name, part) for table in (OVERRIDDEN, USED) for name, parts in table.items() for part in parts]
OURS = {"_failed", "_close", "_leave", "_met", "_processes", "_store", "_check_clock", "_is_heard"}
"""private names of our own"""


@pytest.mark.parametrize(("name", "part"), BY_CLASS)
def test_a_class_of_torch_has_what_is_overridden_and_used(name, part):
    cls = pkgutil.resolve_name(name)
    sources = "".join(inspect.getsource(base) for base in cls.__mro__ if base.__module__.startswith("torch"))
    assert hasattr(cls, part) or re.search(rf"self\.{part}\b.* = ", sources)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_a_module_of_torch_has_what_is_used(module, name):
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("ours", [agent, meeting])
def test_nothing_else_is_taken(ours):
    taken = set(re.findall(r"\b_[a-z][a-z_]+\b|\b_[A-Z][a-z]\w+\b", inspect.getsource(ours)))
    listed = {part for _, part in BY_CLASS} | {name for names in NAMES.values() for name in names}
    assert taken - listed <= OURS


def test_this_version_of_torch_is_one_of_those():
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    assert tuple(map(int, OLDEST.split("."))) <= version <= tuple(map(int, LATEST.split(".")))
