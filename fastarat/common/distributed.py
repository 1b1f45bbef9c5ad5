"""Several processes, one a GPU (NCCL) or several on a CPU (gloo); started by torch's elastic launcher."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from fastarat.common.errors import UserError, WorkError, first_line
from fastarat.common.heap import keep_freed_memory
from fastarat.common.network import interface_of, own_address
from fastarat.common.processes import launched, may_start_again, on_one_machine
from fastarat.common.ranks import gpu_of

S = TypeVar("S")
T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=1)
"""for a process that does the same as the others: compiling a step from a cold cache takes minutes"""
LONGEST_STEP = timedelta(minutes=15)
"""for its part of a step, which all of them have compiled: the longest that a loader may stand still"""
_NCCL_S = timedelta(minutes=1)
"""how much longer NCCL waits: it aborts the process, which can say why where it meets the others between steps"""
_BETWEEN_LOOKS_S = 0.05
"""at who has come, while the processes meet"""
_LONGEST_MEETING_S = 1800.0
"""as long as torch waits for them"""

OF_ANOTHER = "another process"
"""how a message begins that gives no reason of its own"""


DUPLICATE = "Duplicate GPU"
"""what NCCL says of two processes on one GPU"""


@dataclass(frozen=True)
class World:
    """This process's place among all of them."""

    device: torch.device
    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None
    """for tensors of the training; None for a single process"""
    control: ProcessGroup | None = None
    """gloo, for flags on the host: asking for them never waits for the device"""

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0


def join_world(device: str) -> World:
    """Join the processes that the launcher started; alone if it did not. `device`: cpu or cuda.

    Raises `WorkError` if one of them cannot be reached, `UserError` if two of them have the same GPU.
    """
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes never change: let cuDNN time its algorithms once
    else:
        keep_freed_memory()
    if not launched():
        return World(torch.device(device))
    on_gpu = device.startswith("cuda")
    here = torch.device("cpu")
    if on_gpu:
        here = torch.device("cuda", gpu_of(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()))
        torch.cuda.set_device(here)
    _show_gloo_the_way()
    backend = "nccl" if on_gpu else "gloo"
    try:
        longest = LONGEST_STEP + _NCCL_S if on_gpu else LONGEST_STEP
        store, rank, size = _meeting_point()
        device_id = here if on_gpu else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=device_id, timeout=longest)
        # The first process may decode a large data set while the others wait; the launcher sees who died.
        control = _waiting(timedelta(days=1))
    except RuntimeError as error:
        if DUPLICATE in str(error):
            raise UserError(
                "two processes of this machine have the same GPU: start no more than it has; srun's --gpus-per-task=1 "
                "gives each its own"
            ) from error
        raise WorkError(f"{OF_ANOTHER} cannot be reached: {first_line(error)}") from error
    return World(here, dist.get_rank(), dist.get_world_size(), dist.group.WORLD, control)


def _meeting_point() -> tuple[dist.Store, int, int]:
    """Where the processes find each other, this one's number and how many there are.

    torchrun lets those that it starts again meet in the same store, in which the addresses of those that are gone still
    stand: so each start has a name of its own in it.
    """
    store, rank, size = next(dist.rendezvous("env://"))
    if may_start_again():
        store = dist.PrefixStore(f"start {_name_of_start(store, rank, size)}", store)
    return store, rank, size


def _name_of_start(store: dist.Store, rank: int, size: int) -> str:
    """A word that the processes of this start have in common, and those before them in this store had not.

    Each machine of torchrun's counts the starts for itself, so no count will do. Each process draws a word and shows
    it; the first one answers whatever words are shown with its own, until each word that is shown now was heard of.
    One that is left from an earlier start never is: whoever showed it is gone. Raises `RuntimeError` where one does not
    come in time.
    """
    mine = uuid4().hex
    if rank:
        store.set(f"shown by {rank}", mine)
        name = store.get(f"answer to {mine}").decode()
        store.set(f"{name} heard by {mine}", "")
        return name
    shown, end = [f"shown by {other}" for other in range(1, size)], time.monotonic() + _LONGEST_MEETING_S
    while True:
        words = [store.get(key).decode() for key in shown if store.check([key])]
        for word in words:
            store.set(f"answer to {word}", mine)
        if len(words) == len(shown) and all(store.check([f"{mine} heard by {word}"]) for word in words):
            return mine
        if time.monotonic() > end:
            raise RuntimeError("not all processes have come")
        time.sleep(_BETWEEN_LOOKS_S)


def _show_gloo_the_way() -> None:
    """Let gloo take the interface that leads to the first machine. By itself it takes the address of this machine's
    name, which often is one that no other machine reaches."""
    if on_one_machine():
        return
    try:
        interface = interface_of(own_address(os.environ["MASTER_ADDR"]))
    except OSError:  # then torch finds no way either, and says so
        return
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def with_short_waits(world: World) -> World:
    """`world`, whose processes wait for each other `LONGEST_WAIT` at most: from when the data is open they do the same.

    All processes call it together.
    """
    return world if world.control is None else replace(world, control=_waiting(LONGEST_WAIT))


def _waiting(longest: timedelta) -> ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=longest)
    assert isinstance(group, ProcessGroup)
    return group


def leave_world(world: World) -> None:
    """End the process group, if there is one."""
    if world.group is not None:
        dist.destroy_process_group()


def mean_over_processes(tensors: list[Tensor], world: World) -> list[Tensor]:
    """The mean of each tensor over all processes, in its shape: one all-reduce of them all, flattened.

    The tensors have one dtype, and in every process the same shapes.
    """
    if world.group is None:
        return tensors
    flat = finished(started_mean(torch.cat([tensor.flatten() for tensor in tensors]), world), world)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def started_mean(values: Tensor, world: World) -> Tensor:
    """What `finished` makes the mean of `values` (of any shape, floating-point) over all processes; until then they are
    on their way.

    Every process starts the same ones in the same order. A compiler traces both into its graph.
    """
    assert world.group is not None
    op = "avg" if world.device.type == "cuda" else "sum"  # NCCL divides as it adds; gloo cannot
    return torch.ops._c10d_functional.all_reduce(values, op, world.group.group_name)


def finished(values: Tensor, world: World) -> Tensor:
    """The mean that `started_mean` started, when it is there: of the shape and dtype of its values."""
    values = torch.ops._c10d_functional.wait_tensor(values)
    return values if world.device.type == "cuda" else values / world.size


def sum_over_processes(values: Tensor, world: World) -> Tensor:
    """The sum of `values` (of any shape and dtype) over all processes, for which `values` is overwritten."""
    if world.group is not None:
        dist.all_reduce(values, group=world.group)
    return values


def average_in_place(tensors: Iterable[Tensor], world: World) -> None:
    """Make every process's tensors, of one dtype, their mean: running statistics, before they are used or saved."""
    tensors = list(tensors)
    if world.group is None or not tensors:
        return
    with torch.no_grad():
        for tensor, mean in zip(tensors, mean_over_processes(tensors, world), strict=True):
            tensor.copy_(mean)


def decided(decide: Callable[[], T], world: World) -> T:
    """What the first process decides, told to all; the others are not asked.

    Whatever processes meet over depends on such a decision alone: two that look at clocks, files or figures of their
    own may differ, and then wait for each other forever. `T`: what pickle takes, and small.
    """
    if world.control is None:
        return decide()
    box: list[Any] = [decide() if world.is_main else None]
    dist.broadcast_object_list(box, src=0, group=world.control)
    return box[0]


def largest(values: tuple[int, ...], world: World, longest: timedelta | None = None) -> tuple[int, ...]:
    """The largest of each number over all processes, which must all ask at the same step.

    They wait `longest` for each other, by default as long as at any meeting. Raises `RuntimeError` after that.
    """
    if world.control is None:
        return values
    found, options = torch.tensor(values, dtype=torch.int64), dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.MAX  # type: ignore[assignment]  a member of that enumeration
    if longest is not None:
        options.timeout = longest
    world.control.allreduce([found], options).wait()
    return tuple(found.tolist())


def gathered(value: T, world: World) -> list[T]:
    """What each process gives, in their order. `T`: what pickle takes, and small."""
    if world.control is None:
        return [value]
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, value, group=world.control)
    return found


def divided(items: Sequence[S], work: Callable[[S], T], world: World) -> list[T]:
    """What `work` gives for each of `items`, in their order, which are dealt out to the processes one by one: each does
    its own, and all get all. `T`: what pickle takes, with its tensors on the CPU.
    """
    everyones = gathered([work(item) for item in items[world.rank :: world.size]], world)
    return [everyones[i % world.size][i // world.size] for i in range(len(items))]


def said_of_others(error: str, world: World) -> str:
    """What a collective's error says of another process, in our words; empty if it is none, or there is no other."""
    if world.group is None:
        return ""
    if "onnection" in error:
        return f"{OF_ANOTHER} has ended: it was killed, or failed for the reason that is said here or on its machine"
    if "imed out" in error:
        return f"{OF_ANOTHER} hangs, and process {world.rank} has waited too long: end it, then --resume goes on"
    return ""


def barrier(world: World) -> None:
    """Wait for all processes."""
    if world.control is not None:
        dist.barrier(group=world.control)
