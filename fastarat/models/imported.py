"""A model that a user's own Python makes, named as MODULE:FUNCTION."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from fastarat.common.errors import UserError, unknown


def import_model(name: str) -> nn.Module:
    """Call FUNCTION of MODULE, which lies in the working directory or is installed, without arguments: the net.

    Raises `UserError` with one line if one of them is not there, fails, or gives something else.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"{name}: give MODULE:FUNCTION, as my_nets:resnet for the function resnet in my_nets.py")
    with _working_directory_on_path():
        function = _function(_module(module_name), function_name)
        model = _called(function, name)
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} gives {type(model).__name__}: let it return the net, a torch.nn.Module")
    return model


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def _called(function: Callable[[], Any], name: str) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as e:
        raise UserError(f"{name} is called without arguments and fails: {type(e).__name__}: {e}") from None


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name and (name == e.name or name.startswith(f"{e.name}.")):
            raise UserError(f"there is no module {name!r}, neither in {Path.cwd()} nor installed") from None
        raise UserError(f"the module {name} imports {e.name!r}, which is not installed") from None
    except (Exception, SystemExit) as e:
        raise UserError(f"the module {name} cannot be imported: {type(e).__name__}: {e}") from None


def _function(module: Any, name: str) -> Any:
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function of the module {module.__name__}", name, there)
    if not callable(getattr(module, name)):
        raise UserError(f"{name} of the module {module.__name__} is no function: give one that returns the net")
    return getattr(module, name)
