"""Nets of others: torchvision's and timm's by name, if those are installed (`torchvision/resnet50`, `timm/resnet26`),
and what a user's own Python makes (`MODULE:FUNCTION` or `FILE.py:FUNCTION`)."""

import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from fastarat.common.errors import UserError, did_you_mean, first_line, unknown
from fastarat.common.files import require_file
from fastarat.config.model import FOREIGN


class ForeignNet(NamedTuple):
    """The call that builds a net with random weights: `library`.`function`(`net`, **`arguments`)."""

    library: str
    function: str
    net: str
    arguments: dict[str, Any]


def foreign_net(name: str, num_classes: int, in_channels: int) -> ForeignNet:
    """How the net of this name is built. Raises `UserError` for torchvision's with other than 3 channels."""
    match = FOREIGN.fullmatch(name)
    assert match, name
    package, net = match.groups()
    if package == "timm":
        arguments = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
        return ForeignNet("timm", "create_model", net, arguments)
    if in_channels != 3:
        raise UserError(f"{name} takes images of 3 channels, these have {in_channels}: nets of timm take any number")
    return ForeignNet("torchvision.models", "get_model", net, {"weights": None, "num_classes": num_classes})


def build_foreign(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """The plain net. Raises `UserError` if its package is not there, or has no classifier of this name."""
    library_name, function, net, arguments = foreign_net(name, num_classes, in_channels)
    library = _imported(name, library_name)
    known = library.list_models() if library_name == "timm" else library.list_models(module=library)
    if net not in known:
        package, _, _ = name.partition("/")
        hint = did_you_mean(net, known, lambda each: repr(f"{package}/{each}"))
        raise UserError(f"unknown model {name!r}: it is none of {package}'s {len(known)} classifiers{hint}")
    model: nn.Module = getattr(library, function)(net, **arguments)
    if getattr(model, "aux_logits", False):
        raise UserError(f"{name} gives more than logits while it trains: give a net with one output")
    return model


@torch.no_grad()
def check_image_sizes(model: nn.Module, name: str, in_channels: int, sizes: Iterable[tuple[int, int]]) -> None:
    """Raise `UserError` if a net (in eval mode) does not take images of one of these heights and widths."""
    for height, width in sizes:
        try:
            model(torch.zeros(1, in_channels, height, width))
        except (AssertionError, RuntimeError, ValueError) as error:  # each net has its own way to say so
            reason = first_line(error).rstrip(".")
            raise UserError(
                f"{name} takes no images of {width}x{height} ({reason}): give another size or net"
            ) from error


def _imported(name: str, library: str) -> ModuleType:
    package, _, _ = library.partition(".")
    try:
        return importlib.import_module(library)
    except ImportError as error:
        missing = (error.name or package).partition(".")[0]
        raise UserError(f"{name} needs {missing}: pip install {missing}") from error
    except (OSError, RuntimeError) as error:
        fix = "install builds of torch and torchvision that fit"
        raise UserError(f"{package} cannot be imported ({first_line(error)}): {fix}") from error


def import_model(name: str) -> nn.Module:
    """Call FUNCTION of MODULE, which lies in the working directory or is installed, without arguments: the net. In
    place of MODULE its file may be named, in any folder: FILE.py. Either may import what lies beside it.

    Raises `UserError` with one line if one of them is not there, fails, or gives something else.
    """
    module, _, function = name.rpartition(":")
    is_file = module.endswith(".py")
    is_path = "/" in module or module.startswith(".")
    if not module or not function or (is_path and not is_file):
        example = "my_nets:resnet or my_nets.py:resnet for the function resnet in my_nets.py"
        raise UserError(f"{name}: give MODULE:FUNCTION or FILE.py:FUNCTION, as {example}")
    if is_file:
        require_file(Path(module))
    folder = str(Path(module).absolute().parent if is_file else Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return _called(_function(_module(module, _loaded if is_file else importlib.import_module), function), name)
    finally:
        sys.path.remove(folder)


def _called(function: Callable[[], Any], name: str) -> nn.Module:
    try:
        model = function()
    except (Exception, SystemExit) as error:
        raise UserError(f"{name} is called without arguments and fails: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} gives {type(model).__name__}: let it return the net, a torch.nn.Module")
    return model


def _module(name: str, load: Callable[[str], ModuleType]) -> ModuleType:
    try:
        return load(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}.") and load is importlib.import_module:
            raise UserError(f"there is no module {name!r}, neither in {Path.cwd()} nor installed") from error
        raise UserError(f"the module {name} imports {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"the module {name} cannot be imported: {type(error).__name__}: {error}") from error


def _loaded(file: str) -> ModuleType:
    """The module in a file, under the file's name: another module may have the name without its end."""
    spec = spec_from_file_location(file, file)
    assert spec and spec.loader, file
    module = sys.modules[file] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _function(module: Any, name: str) -> Any:
    if not hasattr(module, name):
        kinds = (FunctionType, type(nn.Module))
        there = [key for key, value in vars(module).items() if isinstance(value, kinds) and not key.startswith("_")]
        raise unknown(f"function of the module {module.__name__}", name, there)
    if not callable(getattr(module, name)):
        raise UserError(f"{name} of the module {module.__name__} is no function: give one that returns the net")
    return getattr(module, name)
