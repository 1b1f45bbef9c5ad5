"""TF32, to which a GPU may round the factors of float32 convolutions and matrix products: where, and without."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Not the older `allow_tf32`: it raises where a program has set the newer names.
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


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let float32 have all its 23 bits, of which TF32 keeps 10."""
    before = [of.fp32_precision for of in _ALL]
    for of in _ALL:
        of.fp32_precision = "ieee"
    try:
        yield
    finally:
        for of, value in zip(_ALL, before, strict=True):
            of.fp32_precision = value
