"""What a streaming loader asks of a decoder: which images, what part of each, and how large."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from fastarat.common.errors import WorkError


@dataclass(frozen=True)
class Request:
    """One batch of B images to be decoded."""

    index: np.ndarray
    """int64 [B]: images of the set"""
    boxes: np.ndarray
    """int32 [B, 4]: (left, top, width, height), the part of each stored image to show, in its pixels"""
    size: tuple[int, int]
    """(width, height) that each part is resized to; one that has it already keeps its pixels as they are"""


class Decoder(Protocol):
    """Stored images to pixels, in threads or processes of its own, a few batches ahead of whoever asks."""

    def decode(self, requests: Iterable[Request]) -> Generator[Tensor, None, None]:
        """A batch for each request, in order: uint8 [B, H, W, 3] on the host, contiguous, never written to again.

        Requests are taken as they are needed, so they may be endless; none is larger than the first. Closing the
        iterator early leaves no thread or process waiting; at most one iterator is alive. Raises `WorkError`, naming
        the image, if one cannot be decoded, and within seconds if a worker has died or hangs.
        """
        ...

    def close(self) -> None:
        """End every thread and process."""
        ...


def changed_since_checked(name: str, reason: str) -> WorkError:
    """The error for an image that could be decoded when the data was opened, and cannot now."""
    return WorkError(f"image {name} cannot be decoded ({reason}): has it changed since it was checked?")
