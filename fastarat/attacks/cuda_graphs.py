"""How an attack's state is moved on: directly, or by replaying CUDA graphs.

An attack is a loop of one function from state to state, thousands of short calls between which nothing is asked of the
device. `Captured` records such a function once for each of a few numbers of rows, and a call is then one launch. What
it is given is padded to the next such number with copies of the first row, whose results nobody sees.
"""

import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastarat.attacks.pgd import Logits
from fastarat.common.console import notice
from fastarat.common.errors import first_line
from fastarat.common.memory import memory_that_ran_out

S = TypeVar("S", bound=NamedTuple)

FORWARDS = {"apgd": 1, "fab": 2, "square": 1}
"""how often a move runs the model on each row"""

# Up to this many numbers of rows have graphs of their own. Under an eighth of a batch that lost rows is padding.
SIZES = 8
_WARM_UP_MOVES = 2


Mover = Callable[[tuple, Callable[[Any], Any], Any], Any]
"""From a name, a function `move` of tensors alone, and a state to `move(state)`, or what amounts to it.

The name, one of `FORWARDS` first, says all that `move` is made from, but for the model. The state is a named tuple of
tensors, of as many rows as its first, or without dimensions; one that was returned is overwritten by the next call."""


def directly(name: tuple, move: Callable[[S], S], state: S) -> S:
    """`move(state)`, without further ado."""
    return move(state)


class Captured:
    """Replays `move` from CUDA graphs, for one model and batches of up to `batch` rows.

    A model that cannot be captured, since it waits for the device or copies from the host, is run directly: `problem`
    then says why, and so does a line on stderr. A model that computes otherwise from pass to pass must not come here.
    """

    def __init__(self, batch: int):
        self.batch, self.problem = batch, ""
        self.graphs: dict[Hashable, _Graph] = {}
        self.pool: Any = None
        """of memory that all graphs share: they run one after the other, and keep nothing there between replays"""
        self.stream: Any = None
        """on which all are captured, as the shared pool wants it; libraries keep memory for each stream they see"""

    def size(self, rows: int) -> int:
        """The number of rows that this many are padded to."""
        part = -(-self.batch // SIZES)
        return max(min(-(-rows // part) * part, self.batch), rows)

    def __call__(self, name: tuple, move: Callable[[S], S], state: S) -> S:
        """As `Mover` says."""
        size = self.size(len(state[0]))
        key = (name, size, *((tensor.shape[1:], tensor.dtype) for tensor in state))
        if key not in self.graphs and not self.problem:
            try:
                self.pool = self.pool or torch.cuda.graph_pool_handle()
                self.stream = self.stream or torch.cuda.Stream(state[0].device)
                self.graphs[key] = _Graph(move, state, size, self.pool, self.stream)
            except RuntimeError as error:
                if memory_that_ran_out(error):
                    raise
                self.problem = first_line(error.__cause__ or error)  # without what the model's wrapper advises
                notice(f"the attacks run uncaptured: {self.problem}")
        return move(state) if self.problem else self.graphs[key](state)

    def forget(self) -> None:
        """Give up the graphs and their memory. The pool goes with them: none is taken up again once it is empty."""
        self.graphs.clear()
        self.pool = None


class Counted:
    """A model that tells how many images go through it."""

    def __init__(self, logits_of: Logits, tell: Callable[[int], None]):
        self.logits_of, self.tell = logits_of, tell

    def __call__(self, x: Tensor) -> Tensor:
        """The logits of `x`."""
        logits = self.logits_of(x)
        self.tell(len(x))
        return logits


class Graphs:
    """The graphs of an evaluation in batches of up to `batch` rows, for each of its models."""

    def __init__(self, batch: int):
        self.batch = batch
        self.captured: dict[Logits, Captured] = {}

    def of(self, logits_of: Logits) -> tuple[Logits, Mover]:
        """The model to attack, and the mover to do it with.

        A replay runs no Python: where the model is `Counted`, the mover tells of its passes, and the model is bare.
        """
        if not isinstance(logits_of, Counted):
            return logits_of, self.captured.setdefault(logits_of, Captured(self.batch))
        model, tell = logits_of.logits_of, logits_of.tell
        captured = self.captured.setdefault(model, Captured(self.batch))

        def telling(name: tuple, move: Callable[[S], S], state: S) -> S:
            moved = captured(name, move, state)
            tell(FORWARDS[name[0]] * len(moved[0]))
            return moved

        return model, telling

    def forget(self) -> None:
        """Give up the graphs of every model, with the states in them, which the next attack has no use for."""
        for captured in self.captured.values():
            captured.forget()


def graphs_on(device: torch.device, batch: int, random: bool) -> Graphs | None:
    """The graphs of an evaluation; None where its attacks run directly: on a CPU, and for a model that is `random`,
    since every replay would use the numbers that its Python drew once."""
    return Graphs(batch) if device.type == "cuda" and not random else None


class _Graph:
    """One function in a CUDA graph, over tensors of its own that hold the state."""

    def __init__(self, move: Callable[[Any], Any], state: Any, size: int, pool: Any, stream: Any):
        self.move = move  # what it holds on to must live as long as the graph
        self.own = type(state)(*(_padded(tensor, size) for tensor in state))
        self.handed: Any = (None,) * len(state)
        here = torch.cuda.current_stream(state[0].device)
        stream.wait_stream(here)
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_MOVES):
                    self.move(self.own)
                with _refusing_to_wait():
                    self.move(self.own)
                self.graph = torch.cuda.CUDAGraph()
                with capturing(self.graph, pool=pool, stream=stream):
                    self.advance()
        finally:  # after a failure too the memory of what ran there is used again here
            here.wait_stream(stream)

    def advance(self) -> None:
        """Move the own state on."""
        moved = zip(self.own, self.move(self.own), strict=True)
        # What comes from another place of the state is saved before that place is written.
        places = set(map(id, self.own))
        changes = [(own, new.clone() if id(new) in places else new) for own, new in moved if new is not own]
        for own, new in changes:
            own.copy_(new)

    def __call__(self, state: Any) -> Any:
        rows, places = len(state[0]), zip(self.own, self.handed, state, strict=True)
        # What was handed out is there already; all else is copied before any of it is written, since parts of the
        # state may have changed places.
        changes = [(own, _padded(given, len(self.own[0]))) for own, handed, given in places if given is not handed]
        for own, new in changes:
            own.copy_(new)
        self.graph.replay()
        if self.handed[0] is None or len(self.handed[0]) != rows:
            self.handed = type(state)(*(own[:rows] if own.dim() else own for own in self.own))
        return self.handed


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, **options: Any) -> Iterator[None]:
    """Record what is launched within in `graph`; `options` as `torch.cuda.graph` takes them.

    Nothing is collected meanwhile, since garbage may hold what no capture lets go of. Raises what failed within, and
    not what the end of an invalid capture says of it. The current stream is afterwards what it was: where that end
    fails, torch stays on the capture's.
    """
    gc.collect()
    collects, reason = gc.isenabled(), None
    gc.disable()
    try:
        # Thread-local: what NCCL's own threads ask of the device does not end the capture.
        whole = torch.cuda.graph(graph, capture_error_mode="thread_local", **options)
        with torch.cuda.stream(torch.cuda.current_stream()), whole:
            try:
                yield
            except Exception as error:
                reason = error
                raise
    except Exception as error:
        raise reason or error  # noqa: B904, the end's words stay its context
    finally:
        if collects:
            gc.enable()


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Raise `RuntimeError` where the host waits for the device: a capture that such a wait ends would leave PyTorch's
    random numbers unusable."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _padded(tensor: Tensor, size: int) -> Tensor:
    """A copy with `size` rows, the first one again after the last; of the same values if it has no dimension."""
    if not tensor.dim():
        return tensor.clone()
    return torch.cat([tensor, tensor[:1].expand(size - len(tensor), *tensor.shape[1:])])
