"""TF32, to which a GPU may round the factors of float32 convolutions and matrix products: where, and without."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

# Not the older names: they raise where a program has set the newer ones.
_CUDNN: Any = torch.backends.cudnn  # of which types know nothing
_CONVOLUTIONS, _PRODUCTS = _CUDNN.conv, torch.backends.cuda.matmul
_ALL = (_CONVOLUTIONS, _CUDNN.rnn, _PRODUCTS)


def rounded_to_tf32(device: torch.device) -> str:
    """Which float32 operations of this device are rounded: `convolutions`, as is PyTorch's default, `matrix products`,
    both, or none."""
    if device.type != "cuda":
        return ""
    named = {"convolutions": _CONVOLUTIONS, "matrix products": _PRODUCTS}
    return " and ".join(name for name, of in named.items() if of.fp32_precision == "tf32")


def _older_names() -> list[tuple[Callable[[Any], None], Any, Any]]:
    """What sets each of the older names, which a model may read, what it says now, and what it says where nothing is
    rounded; without those that cannot be read, since a program has set the newer ones."""
    names = (
        (lambda: _CUDNN.allow_tf32, lambda value: setattr(_CUDNN, "allow_tf32", value), False),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    )
    found: list[tuple[Callable[[Any], None], Any, Any]] = []
    for read, write, unrounded in names:
        with suppress(RuntimeError):
            found.append((write, read(), unrounded))
    return found


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let float32 have all its 23 bits, of which TF32 keeps 10."""
    before, older = [of.fp32_precision for of in _ALL], _older_names()
    for write, value, unrounded in older:
        if value != unrounded:
            write(unrounded)
    for of in _ALL:
        of.fp32_precision = "ieee"
    try:
        yield
    finally:
        for write, value, unrounded in older:
            if value != unrounded:
                write(value)
        for of, value in zip(_ALL, before, strict=True):
            of.fp32_precision = value
