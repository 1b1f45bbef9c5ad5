"""Recipes by name, `<data>-<model>-<method>`, which is their file's: each defines RECIPE and says in its head what it
costs and gives."""

import importlib
import pkgutil
from dataclasses import replace

from fastarat.common.errors import unknown
from fastarat.config import Config, Fidelity, published_code

DEFAULT = "digits-arat"


def names() -> list[str]:
    """All recipes, in alphabetical order."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules)


def _module(name: str):
    if name not in names():
        raise unknown("recipe", name, names(), "fastarat recipes")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def recipe(name: str, fidelity: Fidelity = "paper") -> Config:
    """The configuration of a recipe. Raises `UserError` for an unknown name, and as `published_code` does."""
    config: Config = replace(_module(name).RECIPE, recipe=name)
    return published_code(config) if fidelity == "published-code" else config


def head(name: str) -> str:
    """What the recipe's file says at its top: command, time and accuracy. Raises `UserError` for an unknown name."""
    return (_module(name).__doc__ or "").strip()
