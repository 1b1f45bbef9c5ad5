"""Memory that a kernel forgot to write shows: new tensors come full of NaN."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor


@contextmanager
def poisoned() -> Iterator[None]:
    """`torch.empty` and `torch.empty_like` give NaN (floats), True (bool) or 77 (integers) everywhere."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(x: Tensor) -> Tensor:
        return x.fill_(float("nan") if x.is_floating_point() else 77)

    def poisoned_empty(*arguments: Any, **options: Any) -> Tensor:
        return fill(empty(*arguments, **options))

    def poisoned_empty_like(*arguments: Any, **options: Any) -> Tensor:
        return fill(empty_like(*arguments, **options))

    with patch.object(torch, "empty", poisoned_empty), patch.object(torch, "empty_like", poisoned_empty_like):
        yield
