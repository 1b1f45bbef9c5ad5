"""A command whose work several processes share: --gpus or --procs start them here, and on each of several machines with
--nodes and --rendezvous; srun or torchrun start them anywhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from fastarat.commands.parsing import named_device
from fastarat.common.console import stderr, stdout
from fastarat.common.errors import UserError, WorkError
from fastarat.common.processes import by_another, is_first, is_first_here, join_ranks, launched

if TYPE_CHECKING:
    from fastarat.common.distributed import World


class Asked(Protocol):
    """The flags that such a command has."""

    @property
    def gpus(self) -> int: ...
    @property
    def procs(self) -> int: ...
    @property
    def device(self) -> str: ...


def refuse_own_flags(given: dict[str, object]) -> None:
    """Raise `UserError` for a flag of our own launcher that is `given` where another one started this process."""
    for flag, value in given.items():
        if value and by_another():
            raise UserError(
                f"{flag} is for fastarat's own launcher, and another one has started this process: leave it out, or "
                "give that one its own"
            )


def started(asked: Asked, args: list[str], nodes: int = 1, rendezvous: str = "") -> int | None:
    """Do `fastarat ARGS` in the processes that are asked for, on `nodes` machines that meet at `rendezvous`, HOST:PORT;
    returns its exit code, or None where this process is to do the work: alone, or as one of those. Raises `UserError`
    for numbers of processes that there cannot be."""
    if not rendezvous:
        join_ranks()  # with it our own launcher runs on each machine, whoever started that
    refuse_own_flags({"--rendezvous": rendezvous})
    for name, number, least in (("--gpus", asked.gpus, 0), ("--procs", asked.procs, 0), ("--nodes", nodes, 1)):
        if number < least:
            raise UserError(f"{name} is {number}: give 1 or more")
    if asked.gpus and (asked.procs or asked.device == "cpu"):
        raise UserError("--gpus are processes on GPUs: leave --procs and --device out")
    if asked.procs and asked.device == "cuda":
        raise UserError("--procs are processes on the CPU: give --gpus N for several GPUs")
    if not launched() and (nodes > 1) != bool(rendezvous):
        raise UserError("--nodes N and --rendezvous HOST:PORT go together: give both on every machine, or neither")
    if launched() or nodes * max(asked.gpus, asked.procs, 1) < 2:
        return None
    import torch

    from fastarat.training.launching.launch import Machines, launch

    if asked.gpus > (there := torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise UserError(f"--gpus {asked.gpus}: this machine has {there}: give no more, or --procs N on the CPU")
    goes_on = "give the same command again"
    machines = Machines(nodes, nodes, rendezvous) if nodes > 1 else None
    number, on_gpus = max(asked.gpus, asked.procs, 1), asked.gpus > 0
    return launch(number, args, machines=machines, goes_on=goes_on, on_gpus=on_gpus)


@contextmanager
def world_of(asked: Asked) -> Iterator["World"]:
    """This process's place among those that share the work, of which the first one alone speaks. Raises `WorkError`
    where another one has ended."""
    import torch

    from fastarat.common.distributed import World, join_world, leave_world, said_of_others
    from fastarat.common.heap import keep_freed_memory

    speaks = is_first()
    stderr.quiet = stdout.quiet = not speaks
    world = None
    try:
        device = torch.device("cpu") if asked.procs else named_device(asked.device)
        if not launched():
            if device.type == "cpu":
                keep_freed_memory()
            yield World(device)
            return
        times_algorithms = torch.backends.cudnn.benchmark
        world = join_world(device.type)
        torch.backends.cudnn.benchmark = times_algorithms  # results are those of one process
        yield world
        leave_world(world)
    except WorkError:
        raise
    except RuntimeError as error:
        if world and (said := said_of_others(str(error), world)):
            raise WorkError(said) from error
        raise
    finally:
        stderr.quiet = stdout.quiet = False


@contextmanager
def first_here_first(world: "World") -> Iterator[None]:
    """What the first process of each machine does before its others: it may prepare what they then find."""
    from fastarat.common.distributed import barrier

    if not is_first_here():
        barrier(world)
    yield
    if is_first_here():
        barrier(world)
