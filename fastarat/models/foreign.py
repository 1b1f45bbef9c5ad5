"""Nets of torchvision and timm by name, if those are installed: `torchvision/resnet50`, `timm/resnet26`."""

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from fastarat.common.errors import UserError, first_line
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
        near = get_close_matches(net, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(f'{package}/{each}') for each in near)}?" if near else ""
        raise UserError(f"Unknown model {name!r}: it is none of {package}'s {len(known)} classifiers.{hint}")
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
        except (AssertionError, RuntimeError, ValueError) as e:  # each net has its own way to say so
            reason = first_line(e).rstrip(".")
            raise UserError(
                f"{name} takes no images of {width}x{height} ({reason}): give another size or net"
            ) from None


def _imported(name: str, library: str) -> ModuleType:
    package, _, _ = library.partition(".")
    try:
        return importlib.import_module(library)
    except ImportError as e:
        missing = (e.name or package).partition(".")[0]
        raise UserError(f"{name} needs {missing}: pip install {missing}") from None
    except (OSError, RuntimeError) as e:
        reason = first_line(e)
        raise UserError(
            f"{package} cannot be imported ({reason}): install builds of torch and torchvision that fit"
        ) from None
