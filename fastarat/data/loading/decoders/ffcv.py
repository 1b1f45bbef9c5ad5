"""The FFCV loader's decoder: a .beton's images by FFCV's native functions, in threads of fastarat's own.

FFCV's `Loader` is not used: an exception in its thread leaves its consumer waiting forever, a batch is overwritten by
a later one, stopping early leaves the thread behind, and equal seeds do not give equal batches. Its functions decode
well; they are called here without Python's lock, on bytes read from the file (a memory map would end the process with
SIGBUS where the file has become shorter).
"""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import numpy as np
import torch
from torch import Tensor

from fastarat.common.console import command
from fastarat.common.errors import WorkError
from fastarat.data.images.decoding import pixels_of, reason_of
from fastarat.data.images.stored import StoredImages, changed
from fastarat.data.loading.decoders import ffcv_native
from fastarat.data.loading.decoders.decoder import Decoder, Request
from fastarat.data.loading.decoders.ffcv_native import Stored
from fastarat.data.loading.decoders.prefetch import STALL_S, prefetch

AHEAD = 3
"""Batches made before they are asked for."""
IN_WORK = 2
"""Batches that threads work on at a time, so that no thread waits for the last image of one."""
PARTS = 2
"""Tasks that a batch gives each thread."""


@dataclass(frozen=True)
class _Part:
    """Some rows of a batch."""

    index: np.ndarray
    boxes: np.ndarray
    out: np.ndarray
    """uint8 [n, H, W, 3], into which they are decoded"""
    status: "Future[np.ndarray]" = field(default_factory=Future)
    """int64 [n] once they are: 0 where it went well"""


class FFCVDecoder(Decoder):
    """See `Decoder`. `images` are those of one .beton, as `beton.read` opens it; `workers` are threads.

    Each image of a file with a seal is compared with its checksum when it is read: a wrong bit in a JPEG mostly gives
    no warning, only other pixels. A JPEG that FFCV cannot decode without a warning is a `WorkError`, unless its
    checksum holds: then Pillow, which decoded it when the file was built, decodes it again.
    Raises `UserError` if FFCV is not installed.
    """

    made_for, package = ("beton",), "ffcv"

    def __init__(self, images: StoredImages, workers: int, pin: bool = False):
        (path,) = images.paths
        self.images, self.workers, self.pin = images, workers, pin
        unknown = np.full(len(images), ffcv_native.UNKNOWN)
        self.crc32 = unknown if images.crc32 is None else images.crc32
        self.rows = ffcv_native.compile_rows()
        self.done = np.zeros((workers, 1), np.int64)
        self.most_bytes = int(images.lengths.max(initial=0))
        self.most_pixels = int(images.sizes.astype(np.int64).prod(1)[~images.raw].max(initial=0))
        self.file = Path(path).open("rb")  # noqa: SIM115 - until `close`

    @classmethod
    def refusal(cls, data: str) -> str:
        """See `Decoder.refusal`."""
        return f"FFCV reads .beton files, and {data} is none: {command('data', 'build', data, 'OUT.beton')} makes one"

    def decode(self, requests: Iterable[Request]) -> Generator[Tensor, None, None]:
        """See `Decoder.decode`."""
        return prefetch(self._batches(requests), AHEAD, progress=lambda: int(self.done.sum()), stall_s=STALL_S)

    def close(self) -> None:
        """See `Decoder.close`: threads end with the iterator, here the file is closed."""
        self.file.close()

    def _batches(self, requests: Iterable[Request]) -> Generator[Tensor, None, None]:
        tasks: SimpleQueue[_Part | None] = SimpleQueue()
        # One that hangs must not keep the process.
        threads = [Thread(target=self._work, args=(k, tasks), daemon=True) for k in range(self.workers)]
        for thread in threads:
            thread.start()
        pending: deque[tuple[Tensor, list[_Part]]] = deque()
        try:
            for request in requests:
                pending.append(self._start(request, tasks))
                if len(pending) == IN_WORK:
                    yield self._finished(*pending.popleft())
            while pending:
                yield self._finished(*pending.popleft())
        finally:
            for _ in threads:
                tasks.put(None)
            for thread in threads:
                thread.join()

    def _start(self, request: Request, tasks: "SimpleQueue[_Part | None]") -> tuple[Tensor, list[_Part]]:
        sizes, boxes = self.images.sizes[request.index], request.boxes
        # OpenCV ends the process for a box that is not inside its image.
        if (boxes < (0, 0, 1, 1)).any() or (boxes[:, :2] + boxes[:, 2:] > sizes).any() or min(request.size) < 1:
            raise ValueError("a box lies outside of its image")
        width, height = request.size
        batch = torch.empty((len(request.index), height, width, 3), dtype=torch.uint8, pin_memory=self.pin)
        rows = np.array_split(np.arange(len(request.index)), PARTS * self.workers)
        parts = [_Part(request.index[r], request.boxes[r], batch.numpy()[r[0] : r[-1] + 1]) for r in rows if len(r)]
        for part in parts:
            tasks.put(part)
        return batch, parts

    def _work(self, k: int, tasks: "SimpleQueue[_Part | None]") -> None:
        """Thread `k`: parts of batches, until there are no more."""
        images = self.images
        # Room for a stored and for a decoded image; what no image needs is never touched, and so never taken.
        scratch = np.empty(self.most_bytes, np.uint8), np.empty(3 * self.most_pixels, np.uint8)
        while (part := tasks.get()) is not None:
            try:
                at = part.index
                sizes, boxes = (np.ascontiguousarray(values, np.int64) for values in (images.sizes[at], part.boxes))
                stored = Stored(images.offsets[at], images.lengths[at], self.crc32[at], images.raw[at], sizes)
                status = np.zeros(len(at), np.int64)
                self.rows(self.file.fileno(), stored, boxes, part.out, scratch, status, self.done[k])
                part.status.set_result(status)
            except BaseException as error:
                part.status.set_exception(error)

    def _finished(self, batch: Tensor, parts: list[_Part]) -> Tensor:
        for part in parts:
            status = part.status.result()
            for row in np.flatnonzero(status):
                self._save(part, int(row), int(status[row]))
        return batch

    def _save(self, part: _Part, row: int, status: int) -> None:
        """Decode an image by Pillow where FFCV has not, or raise `WorkError`."""
        image = int(part.index[row])
        path, name = self.images.paths[0], self.images.names[image]
        file = self.images.file(image)  # raises if the .beton has become shorter, or the image is another
        if status == ffcv_native.CHANGED:  # and is as it was again
            raise changed(name, path)
        if status != ffcv_native.DECODE_FAILED or self.images.crc32 is None:
            raise WorkError(
                f"{name} cannot be decoded, or not without doubt: build {path} again; 'fastarat data build' keeps "
                "checksums beside it, by which 'fastarat data check' names images"
            )
        try:
            part.out[row] = pixels_of(file, part.boxes[row], (part.out.shape[2], part.out.shape[1]))
        except Exception as error:  # Pillow raises almost any type for a damaged file
            reason = reason_of(file.content, error)
            raise WorkError(f"{name} cannot be decoded ({reason}): build {path} again") from error
