"""The plain decoder: PIL in PyTorch's worker processes, as most training code has it. Needs nothing but PyTorch.

Pixels come back through memory that all share from the start, and messages are a few bytes: PyTorch's own way, a new
piece of shared memory for each batch, waits forever for a worker that hangs while it hands one over.
"""

import math
import multiprocessing
import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, cycle
from multiprocessing.process import BaseProcess
from operator import itemgetter
from threading import current_thread, main_thread

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fastarat.common.errors import WorkError
from fastarat.common.signals import ENDING
from fastarat.data.images.decoding import pixels_of, reason_of
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders.decoder import Decoder, Request, changed_since_checked
from fastarat.data.loading.decoders.prefetch import STALL_S, Watch

AHEAD = 2
"""Batches that a worker has in hand."""
LOST_WORKER = (
    "a process that decodes images has died: killed, or out of memory; --loading.workers 1 needs the least, --resume "
    "goes on from the newest checkpoint"
)
_POLL_S = 1.0
_TIMED_OUT = "timed out"  # in what PyTorch raises when a batch is not there in that time


class PlainDecoder(Decoder):
    """See `Decoder`. Each of `workers` processes decodes a batch at a time; they live until `close`."""

    def __init__(self, images: StoredImages, workers: int, pin: bool = False):
        self.images, self.workers, self.pin = images, workers, pin
        self.decoding: _Decoding | None = None
        self.loader: DataLoader | None = None
        self.requests = _Requests()

    def decode(self, requests: Iterable[Request]) -> Generator[Tensor, None, None]:
        """See `Decoder.decode`."""
        requests = iter(requests)
        first = next(requests, None)
        if first is None:
            return
        self.requests.source = chain([first], requests)
        try:
            messages, decoding = self._begun(len(first.index) * 3 * first.size[0] * first.size[1])
            while (message := self._next(messages, decoding)) is not None:
                problem, slot, shape = message
                if problem:
                    raise WorkError(problem)
                batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin)
                yield batch.copy_(decoding.slots[slot, : batch.numel()].view(shape))
            if self.requests.error is not None:
                raise self.requests.error
        except BaseException:  # GeneratorExit too: work that nobody wants any more would come first in the next pass
            self.close()
            raise

    def _begun(self, most_bytes: int) -> "tuple[Iterator[_Message], _Decoding]":
        """A pass through the requests, by the workers that run; by new ones if those do not answer at once."""
        decoding, loader = self._started(most_bytes)
        others = set(multiprocessing.active_children())
        try:
            with _signals_left_alone():
                return iter(loader), decoding
        except BaseException as error:
            if getattr(loader, "_iterator", None) is None:  # PyTorch has forgotten those it had started
                _end(set(multiprocessing.active_children()) - others)
            if not isinstance(error, RuntimeError):
                raise
            if _TIMED_OUT not in str(error):
                raise WorkError(LOST_WORKER) from error
            self._kill()
            self.close()
            return self._begun(most_bytes)

    def close(self) -> None:
        """See `Decoder.close`."""
        workers = getattr(self.loader, "_iterator", None)
        if workers is not None:
            with suppress(RuntimeError):  # of a worker that has been killed
                workers._shutdown_workers()
        self.decoding, self.loader = None, None

    def _started(self, most_bytes: int) -> "tuple[_Decoding, DataLoader]":
        """Workers that share room for batches of `most_bytes`: those that run, if theirs is large enough."""
        if self.loader is None or self.decoding is None or self.decoding.slots.shape[1] < most_bytes:
            self.close()
            # One more than are on their way: a batch is copied after the next request has been sent.
            num_slots = self.workers * AHEAD + 1
            try:
                self.decoding = _Decoding(self.images, self.workers, num_slots=num_slots, most_bytes=most_bytes)
            except RuntimeError as error:
                raise WorkError(
                    f"no room in /dev/shm for {num_slots} batches of {most_bytes / 2**20:,.0f} MiB: give it more "
                    "(docker run --shm-size), or take fewer --loading.workers"
                ) from error
            self.requests.slots = cycle(range(len(self.decoding.slots)))
            self.loader = DataLoader(
                self.decoding,
                batch_sampler=self.requests,
                collate_fn=itemgetter(0),  # a batch is one message
                num_workers=self.workers,
                prefetch_factor=AHEAD,
                persistent_workers=True,
                timeout=_POLL_S,
                generator=torch.Generator(),  # PyTorch draws its workers' seeds, which nothing here uses
                worker_init_fn=_leave_signals_to_the_parent,
                multiprocessing_context="fork",  # which needs no guard in a script, and copies no table of images
            )
        return self.decoding, self.loader

    def _next(self, messages: "Iterator[_Message]", decoding: "_Decoding") -> "_Message | None":
        watch = Watch(decoding.num_decoded, poll_s=_POLL_S, stall_s=STALL_S)
        while True:
            try:
                return next(messages, None)
            except RuntimeError as error:
                if _TIMED_OUT not in str(error):
                    raise WorkError(LOST_WORKER) from error
            try:
                watch.check()
            except WorkError:
                self._kill()
                raise

    def _kill(self) -> None:
        _end(getattr(getattr(self.loader, "_iterator", None), "_workers", ()))


_Message = tuple[str, int, tuple[int, int, int, int]]
"""What is wrong, the slot, and the shape of the pixels in it."""


class _Requests:
    """Where PyTorch's loader takes its workers' work from: the requests of the pass at hand, with a slot for each."""

    source: Iterable[Request] = ()
    slots: Iterator[int] = iter(())
    error: Exception | None = None
    """what ended the requests early: PyTorch, which asks for them while it starts its workers, would lose those"""

    def __iter__(self) -> Iterator[list[tuple[Request, int]]]:
        self.error = None
        try:
            for request in self.source:
                yield [(request, next(self.slots))]
        except Exception as error:
            self.error = error


class _Decoding(Dataset):
    """A request to pixels in its slot, in a worker."""

    def __init__(self, images: StoredImages, workers: int, *, num_slots: int, most_bytes: int):
        self.images = images
        self.slots = torch.empty(num_slots, most_bytes, dtype=torch.uint8).share_memory_()
        # Counted by each worker: whether a slow batch goes on.
        self.decoded = torch.zeros(workers, dtype=torch.int64).share_memory_()

    def num_decoded(self) -> int:
        """Images decoded by all workers so far."""
        return int(self.decoded.sum())

    def __getitem__(self, item: tuple[Request, int]) -> _Message:
        """The request's slot and shape, or what is wrong: an exception would come with a traceback."""
        request, slot = item
        info = get_worker_info()
        assert info is not None
        shape = (len(request.index), request.size[1], request.size[0], 3)
        pixels = self.slots[slot, : math.prod(shape)].view(shape).numpy()
        for row, (i, box) in enumerate(zip(request.index, request.boxes, strict=True)):
            try:
                pixels[row] = pixels_of(self.images.file(i), box, request.size, self.images.sizes[i])
            except WorkError as error:
                return str(error), slot, shape
            except Exception as error:  # Pillow raises almost any type for a damaged file
                return str(changed_since_checked(self.images.names[i], reason_of(b"-", error))), slot, shape
            self.decoded[info.id] += 1
        return "", slot, shape


def _end(workers: Iterable[BaseProcess]) -> None:
    """A worker that hangs answers nothing but SIGKILL, and none answers SIGTERM."""
    for worker in workers:
        worker.kill()
        worker.join()


@contextmanager
def _signals_left_alone() -> Iterator[None]:
    """PyTorch answers a worker's death with an exception wherever the main thread is at that moment; the pass that
    waits for the worker's batch learns of it anyway."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if current_thread() is main_thread():
            signal.signal(signal.SIGCHLD, before)


def _leave_signals_to_the_parent(worker: int) -> None:
    """What ends the parent may reach every process; the parent alone answers, and ends its workers."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
