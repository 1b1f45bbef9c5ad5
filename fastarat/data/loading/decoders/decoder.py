"""What a streaming loader asks of a decoder: which images, what part of each, and how large."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import numpy as np
from torch import Tensor

from fastarat.common.errors import WorkError
from fastarat.config.data import DECODERS
from fastarat.data.images.stored import StoredImages


@dataclass(frozen=True)
class Request:
    """One batch of B images to be decoded."""

    index: np.ndarray
    """int64 [B]: images of the set"""
    boxes: np.ndarray
    """int32 [B, 4]: (left, top, width, height), the part of each stored image to show, in its pixels"""
    size: tuple[int, int]
    """(width, height) that each part is resized to; one that has it already keeps its pixels as they are"""


class Decoder(ABC):
    """Turns stored images into pixels, in threads or processes of its own, a few batches before they are asked for.

    Raises `UserError`, when it is made, if it cannot work here.
    """

    made_for: ClassVar[tuple[str, ...]] = ()
    """the only formats that it reads, by their names in `FORMATS`; empty: all whose images can be read one by one"""
    package: ClassVar[str] = ""
    """what has to be installed, by the name that Python imports; fastarat's extra of the decoder's name brings it"""
    on_gpu: ClassVar[bool] = False
    """whether it is given the device, as `gpu`, where `--loading.decode` is gpu"""

    @abstractmethod
    def __init__(self, images: StoredImages, workers: int, pin: bool = False):
        """`workers`: threads or processes. `pin`: batches lie in pinned memory."""

    @classmethod
    def refusal(cls, data: str) -> str:
        """The error's text for `data` in a format that it does not read."""
        return f"{cls.__name__} does not read {data}: leave --loader out"

    @abstractmethod
    def decode(self, requests: Iterable[Request]) -> Generator[Tensor, None, None]:
        """A batch for each request, in order: uint8 [B, H, W, 3] on the host, contiguous, never written to again.

        Requests are taken as they are needed, so they may be endless; none is larger than the first. Closing the
        iterator early leaves no thread or process waiting; at most one iterator is alive. Raises `WorkError`, naming
        the image, if one cannot be decoded, and within seconds if a worker has died or hangs.
        """

    @abstractmethod
    def close(self) -> None:
        """End every thread and process."""


def decoder_named(name: str) -> type[Decoder]:
    """The decoder that `--loader` calls so."""
    module, _, cls = DECODERS[name].partition(":")
    return getattr(import_module(module), cls)


def changed_since_checked(name: str, reason: str) -> WorkError:
    """The error for an image that could be decoded when the data was opened, and cannot now."""
    return WorkError(f"image {name} cannot be decoded ({reason}): has it changed since it was checked?")
