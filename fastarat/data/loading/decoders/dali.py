"""The DALI decoder: NVIDIA's library decodes, cuts and resizes, in native threads or on the GPU.

DALI is fed with the files and boxes of each request, and holds no order and no randomness. On the CPU its pixels are
PIL's, bit by bit. Resized ones differ by rounding, and more in the outermost ring of pixels: beyond the border of a
part DALI repeats the last pixel, and PIL leaves out what is not there.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastarat.common.errors import WorkError
from fastarat.data.images.decoding import open_image, reason_of
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders import dali_pipeline
from fastarat.data.loading.decoders.dali_pipeline import BLACK, Inputs, as_ppm, is_left_to_pil
from fastarat.data.loading.decoders.decoder import Decoder, Request, changed_since_checked
from fastarat.data.loading.decoders.prefetch import prefetch

AHEAD = 2
"""Batches decoded before they are asked for."""
SHARE = 32
"""Images that each thread gets at a time: work enough for it, and little enough to see that it goes on."""
PIXELS = 8 * 2**20
"""Pixels that each thread gets at a time at most, or one image: bounds the memory for large photographs."""
READERS = 8
"""Files read at once: this costs nothing where they are in memory, and saves much where they are far away."""


@dataclass(frozen=True)
class _Chunk:
    """Images of one request, which DALI gets at a time."""

    index: np.ndarray
    """int64 [n]: images of the set"""
    first: int
    """the place of the first one in its request"""
    request: Request
    inputs: Inputs


class DALIDecoder(Decoder):
    """See `Decoder`. `workers` are native threads, which live while something is decoded.

    With a `gpu`, JPEGs are decoded there (on the current one, if it has no number); batches are tensors there, and
    complete when they are given. Raises `UserError` if DALI is not installed, or cannot decode on a GPU.
    """

    made_for, package, on_gpu = ("images", "shards"), "nvidia.dali", True

    def __init__(self, images: StoredImages, workers: int, pin: bool = False, *, gpu: torch.device | None = None):
        dali_pipeline.require("cpu" if gpu is None else "gpu")
        self.images, self.workers, self.pin = images, workers, pin and gpu is None
        self.num_done = 0  # images read, images decoded, pipelines built: it grows while nothing hangs
        self.gpu = self.stream = None
        if gpu is not None:
            self.gpu = torch.cuda.current_device() if gpu.index is None else gpu.index
            self.stream = torch.cuda.Stream(self.gpu)

    @classmethod
    def refusal(cls, data: str) -> str:
        """See `Decoder.refusal`."""
        fix = "leave --loader dali and --loading.decode gpu out"
        return f"DALI reads image files and shards, and {data} is neither: {fix}"

    def decode(self, requests: Iterable[Request]) -> Generator[Tensor, None, None]:
        """See `Decoder.decode`."""
        batches = prefetch(self._batches(requests), AHEAD, progress=lambda: self.num_done)
        with closing(batches):  # type: ignore[type-var]
            for batch in batches:
                if batch.is_cuda:  # its memory is another stream's, which must not have it back too soon
                    batch.record_stream(torch.cuda.current_stream(batch.device))
                yield batch

    def close(self) -> None:
        """See `Decoder.close`: what decodes ends with its iterator."""

    def _batches(self, requests: Iterable[Request]) -> Generator[Tensor, None, None]:
        batch = torch.empty(0)
        chunks = prefetch(self._read(requests), AHEAD, progress=lambda: self.num_done)
        with closing(chunks):  # type: ignore[type-var]
            for chunk, pixels in self._decoded(chunks):
                if chunk.first == 0:
                    batch = self._empty(chunk.request)
                end = chunk.first + len(chunk.index)
                self._copy(pixels[: len(chunk.index)], batch[chunk.first : end])
                self.num_done += len(chunk.index)
                if end == len(batch):
                    yield batch

    def _empty(self, request: Request) -> Tensor:
        width, height = request.size
        shape, device = (len(request.index), height, width, 3), "cpu" if self.gpu is None else f"cuda:{self.gpu}"
        with torch.cuda.stream(self.stream):
            return torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=self.pin)

    def _copy(self, pixels: Tensor, into: Tensor) -> None:
        if self.stream is None:
            np.copyto(into.numpy(), pixels.numpy())  # PyTorch would start threads of its own for it
            return
        with torch.cuda.stream(self.stream):
            into.copy_(pixels)
        self.stream.synchronize()

    def _read(self, requests: Iterable[Request]) -> Generator[_Chunk, None, None]:
        for request in requests:
            most = self._most_of(request)
            for first in range(0, max(len(request.index), 1), most):  # a request of no images has its chunk too
                rows = slice(first, first + most)
                index, boxes = request.index[rows], request.boxes[rows]
                files = [np.frombuffer(file, np.uint8) for file in _in_threads(self._file, index)]
                sizes = np.tile(np.array(request.size[::-1], np.float32), (len(index), 1))
                yield _Chunk(index, first, request, (files, boxes[:, :2].copy(), boxes[:, 2:].copy(), sizes))

    def _most_of(self, request: Request) -> int:
        """How many of these images DALI gets at a time: it holds all that it decodes before it resizes any."""
        pixels = np.prod(request.boxes[:, 2:], axis=1, dtype=np.int64).sum() // max(len(request.index), 1)
        return self.workers * min(max(PIXELS // max(int(pixels), 1), 1), SHARE)

    def _file(self, i: int) -> bytes:
        """A file of image `i` that DALI decodes to the pixels that PIL has for it."""
        file = self.images.file(i)
        self.num_done += 1
        if file.raw_size:
            return as_ppm(file.raw_size, file.content)
        if not is_left_to_pil(file.content):
            return file.content
        try:
            with open_image(file) as image:
                return as_ppm(image.size, image.convert("RGB").tobytes())
        except Exception as error:  # Pillow raises almost any type for a damaged file
            raise changed_since_checked(file.name, reason_of(file.content, error)) from error

    def _decoded(self, chunks: Iterator[_Chunk]) -> Generator[tuple[_Chunk, Tensor], None, None]:
        """The pixels of each chunk, uint8 [n, H, W, 3], valid until the next is asked for."""
        in_work: deque[_Chunk] = deque()

        def source() -> Inputs:
            in_work.append(next(chunks))
            return in_work[-1].inputs if len(in_work[-1].index) else BLACK

        most, error = SHARE * self.workers, ""
        pipeline = dali_pipeline.build(source, most, workers=self.workers, gpu=self.gpu, depth=2)
        self.num_done += 1  # so that what follows has its own time
        try:
            while True:
                (pixels,) = pipeline.run()
                yield in_work.popleft(), torch.from_dlpack(pixels.as_tensor())
        except StopIteration:
            return
        except WorkError as problem:  # raised in reading; its frames would keep the pipeline, and so its threads
            error = problem.with_traceback(None)
        except Exception as problem:
            error = " ".join(str(problem).split())
        finally:
            del pipeline
        raise error if isinstance(error, WorkError) else self._culprit(list(in_work), error)

    def _culprit(self, chunks: list[_Chunk], failure: str) -> WorkError:
        """The error that names the image; DALI's names none."""
        for chunk in chunks:
            for i in chunk.index:
                if problem := self._problem(int(i)):
                    return changed_since_checked(self.images.names[i], problem)
        for chunk in chunks:
            for row, i in enumerate(chunk.index):
                if not self._is_decoded(tuple(values[row : row + 1] for values in chunk.inputs)):
                    return WorkError(
                        f"image {self.images.names[i]} cannot be decoded by DALI, though by PIL: save it again, or use "
                        "--loader plain"
                    )
        return WorkError(f"DALI failed: {failure}")

    def _problem(self, i: int) -> str | None:
        """What PIL says about image `i`, or that its size is another now."""
        file, expected = self.images.file(i), tuple(map(int, self.images.sizes[i]))
        try:
            with open_image(file) as image:
                image.load()
                return None if image.size == expected else f"{image.size} pixels, not {expected}"
        except Exception as error:
            return reason_of(file.content, error)

    def _is_decoded(self, inputs: Any) -> bool:
        try:
            dali_pipeline.build(lambda: inputs, 1, workers=1, gpu=self.gpu, depth=1).run()
            return True
        except Exception:
            return False


def _in_threads(work: Callable[[int], bytes], index: np.ndarray) -> list[bytes]:
    """What `work` gives for each, by threads that do not keep the process alive if a disk hangs."""
    results, errors = [b""] * len(index), []

    def some(first: int) -> None:
        try:
            for row in range(first, len(index), READERS):
                results[row] = work(int(index[row]))
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=some, args=(first,), daemon=True) for first in range(min(READERS, len(index)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
