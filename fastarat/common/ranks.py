"""Ranks as srun and mpirun give them to a process, in the words of torch's launcher.

Slurm's variables: https://slurm.schedmd.com/srun.html, "output environment variables". Those that begin with SLURM_STEP
are there only in what srun starts, and not in the script around it.
"""

import re
from collections.abc import Mapping

from fastarat.common.errors import UserError

HERE = "127.0.0.1"
# For each launcher the variables of: this process's number, how many there are, both on this machine.
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""ports below those that Linux gives to clients (from 32,768 on)"""


def found_ranks(environ: Mapping[str, str]) -> dict[str, str] | None:
    """What torch's launcher would have set; None if this process is alone. Raises `UserError` if it cannot be known."""
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _by_slurm(environ)
    for names in MPI:
        if int(environ.get(names[1], "1")) > 1:
            return _by_mpi(environ, names)
    return None


def _by_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    counts = expanded_counts(environ["SLURM_STEP_TASKS_PER_NODE"])
    size, here = int(environ["SLURM_STEP_NUM_TASKS"]), counts[int(environ["SLURM_NODEID"])]
    job, step = int(environ.get("SLURM_JOB_ID", "0")), int(environ.get("SLURM_STEP_ID", "0"))
    head = first_host(environ["SLURM_STEP_NODELIST"]) if len(counts) > 1 else HERE
    port = FIRST_PORT + (31 * job + step) % NUM_PORTS
    return _ranks(int(environ["SLURM_PROCID"]), size, int(environ["SLURM_LOCALID"]), here) | _head(environ, head, port)


def _by_mpi(environ: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    missing = [name for name in names if name not in environ]
    if missing:
        raise UserError(f"mpirun started this process, and does not say {missing[0]}: start it with torchrun or srun")
    rank, size, local_rank, local_size = (int(environ[name]) for name in names)
    if "MASTER_ADDR" not in environ and local_size < size:
        raise UserError(
            "mpirun does not say on which machine the first process runs: give MASTER_ADDR (mpirun -x MASTER_ADDR=HOST)"
        )
    return _ranks(rank, size, local_rank, local_size) | _head(environ, HERE, FIRST_PORT + NUM_PORTS)


def _ranks(rank: int, size: int, local_rank: int, local_size: int) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size}
    return {name: str(number) for name, number in numbers.items()}


def _head(environ: Mapping[str, str], host: str, port: int) -> dict[str, str]:
    """Where the processes meet: as it was given, else there."""
    return {"MASTER_ADDR": environ.get("MASTER_ADDR", host), "MASTER_PORT": environ.get("MASTER_PORT", str(port))}


def gpu_of(local_rank: int, num_visible: int) -> int:
    """Which of the GPUs that a process sees is its own. A task of srun that sees its own alone (--gpus-per-task) has
    the first of them, whatever its number on the machine is; of several tasks with two each, every one takes one of
    its own."""
    return local_rank % num_visible


def expanded_counts(text: str) -> list[int]:
    """Slurm's tasks of each machine: `4(x2),3` is 4, 4, 3."""
    found: list[int] = []
    for part in text.split(","):
        count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups(default="1")  # type: ignore[union-attr]
        found += [int(count)] * int(times)
    return found


def first_host(text: str) -> str:
    """The first of Slurm's list of machines: of `gpu[03-05,09],login1` it is gpu03."""
    first = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", text)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST is {text!r}, which names no machine: give MASTER_ADDR")
    return "".join(first.groups(default=""))
