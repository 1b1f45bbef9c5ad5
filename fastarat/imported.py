"""A model that a user's own Python makes, named as MODULE:FUNCTION."""

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from fastarat.errors import UserError, unknown


def import_model(name: str) -> nn.Module:
    """Call FUNCTION of MODULE, which lies in the working directory or is installed, without arguments: the net.

    Raises `UserError` with one line if one of them is not there, fails, or gives something else.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"{name}: give MODULE:FUNCTION, as my_nets:resnet for the function resnet in my_nets.py")
    function = _function(_module(module_name), function_name)
    try:
        model = function()
    except Exception as e:
        raise UserError(f"{name} is called without arguments and fails: {type(e).__name__}: {e}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} gives {type(model).__name__}: let it return the net, a torch.nn.Module")
    return model


def _module(name: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name and (name == e.name or name.startswith(f"{e.name}.")):
            raise UserError(f"there is no module {name!r}, neither in {here} nor installed") from None
        raise UserError(f"the module {name} imports {e.name!r}, which is not installed") from None
    except Exception as e:
        raise UserError(f"the module {name} cannot be imported: {type(e).__name__}: {e}") from None
    finally:
        sys.path.remove(here)


def _function(module: Any, name: str) -> Any:
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function of the module {module.__name__}", name, there)
    if not callable(getattr(module, name)):
        raise UserError(f"{name} of the module {module.__name__} is no function: give one that returns the net")
    return getattr(module, name)
