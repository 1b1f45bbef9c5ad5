"""Whether a file's tensors are those of the net that it names, known before any memory is taken for the net."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from fastarat.common.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


def check_tensors(
    shapes: Shapes, dtypes: Mapping[str, torch.dtype], make: Callable[[], nn.Module], num_classes: int, path: Path
) -> None:
    """Raise `UserError` unless the net of `make` has tensors of these names, shapes and kinds, and no others.

    A net of another package that cannot be made without memory is measured by its classes alone.
    """
    if not any(num_classes in shape for shape in shapes.values()):
        raise UserError(f"{path} says {num_classes} classes, and none of its tensors has so many rows")
    try:
        with torch.device("meta"):
            wanted = make().state_dict()
    except UserError:
        raise
    except Exception:  # another package's net may ask for values of tensors that have none
        return
    missing, extra = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    if missing or extra:
        problem = f"lacks {missing[0]}" if missing else f"has the unknown tensor {extra[0]}"
        raise UserError(f"{path} {problem}, so that it is not the net that it names")
    for name, tensor in wanted.items():
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(f"{path}: {name} is {list(shapes[name])}, the net that it names has {list(tensor.shape)}")
        if tensor.is_floating_point() != dtypes[name].is_floating_point:
            raise UserError(f"{path}: {name} is of {dtypes[name]}, the net that it names has {tensor.dtype}")
