"""Ranks as mpirun, srun or someone's own script give them to a process, in the words of torch's launcher.

Slurm's variables: https://slurm.schedmd.com/srun.html, "output environment variables". Those that begin with SLURM_STEP
are there only in what srun starts, and not in the script around it.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastarat.common.errors import UserError

HERE = "127.0.0.1"
SIGN = "TORCHELASTIC_RUN_ID"
"""environment variable that is there in what torch's elastic launcher starts"""
# For each launcher the variables of: this process's number, how many there are, both on this machine.
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM_SIZE = "SLURM_STEP_NUM_TASKS"
SIGNS = (SIGN, SLURM_SIZE, "WORLD_SIZE", *(names[1] for names in MPI))
"""environment variables without which a process is alone"""
# Below the ports that Linux gives to clients (from 32,768 on): Slurm's steps, then mpirun's jobs.
FIRST_PORT, NUM_PORTS = 20_000, 10_000
FIRST_OF_MPI, NUM_OF_MPI = 30_000, 2_768
TORCH_PORT = 29_500
"""torch's own default"""


def found_ranks(environ: Mapping[str, str]) -> dict[str, str] | None:
    """What torch's launcher has set, or would have; None if this process is alone. Raises `UserError` if it cannot be
    known."""
    if SIGN in environ:
        return _by_torch(_Said(environ, SIGN, "torchrun"))
    by_mpi = [names for names in MPI if _size(environ, names[1], "mpirun") > 1]
    for names in by_mpi:
        # srun may have started mpirun's daemons. It speaks PMI too, but mpirun alone says who is on this machine.
        if names[3] in environ:
            return _by_mpi(_Said(environ, names[1], "mpirun"), names)
    if _size(environ, SLURM_SIZE, "srun") > 1:
        return _by_slurm(_Said(environ, SLURM_SIZE, "srun"))
    if by_mpi:
        missing = next(name for name in by_mpi[0] if name not in environ)
        raise UserError(f"mpirun started this process, and does not say {missing}: start it with torchrun or srun")
    if "RANK" in environ and _size(environ, "WORLD_SIZE", "torchrun") > 1:
        # Kubeflow's PyTorchJob, for example, says no more than where to meet.
        return _by_torch(_Said({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **environ}, "WORLD_SIZE", "torchrun"))
    return None


@dataclass(frozen=True)
class _Said:
    """The variables of a launcher, which is known by its `sign`, one of them."""

    environ: Mapping[str, str]
    sign: str
    launcher: str

    def text(self, name: str) -> str:
        if name not in self.environ:
            raise UserError(
                f"{self.sign} is set and {name} is not: set it, unset {self.sign}, or start this with {self.launcher}"
            )
        return self.environ[name]

    def number(self, name: str, least: int = 0, most: int | None = None) -> int:
        text = self.text(name)
        # No launcher's numbers have more digits; int() refuses thousands of them.
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= (int(text) if most is None else most):
            wanted = f"{least} or more" if most is None else f"{least} to {most}"
            raise UserError(f"{name} is {text!r}, not {wanted}: unset {self.sign}, or start this with {self.launcher}")
        return int(text)

    def ranks(self, names: tuple[str, ...]) -> dict[str, str]:
        """torch's four numbers, of which the launcher's `names` are those in `MPI`."""
        size = self.number(names[1], 1)
        here = self.number(names[3], 1, size)
        numbers = self.number(names[0], 0, size - 1), size, self.number(names[2], 0, here - 1), here
        return {name: str(number) for name, number in zip(TORCH, numbers, strict=True)}

    def head(self, host: str, port: int) -> dict[str, str]:
        """Where the processes meet: as it was given, else there."""
        if "MASTER_PORT" in self.environ:
            port = self.number("MASTER_PORT", 1, 65_535)
        return {"MASTER_ADDR": self.environ.get("MASTER_ADDR", host), "MASTER_PORT": str(port)}


def _size(environ: Mapping[str, str], name: str, launcher: str) -> int:
    """How many processes the launcher that sets `name` started; 1 if it has not set it."""
    return _Said(environ, name, launcher).number(name, 1) if name in environ else 1


def _by_torch(said: _Said) -> dict[str, str]:
    return said.ranks(TORCH) | said.head(said.text("MASTER_ADDR"), TORCH_PORT)


def _by_slurm(said: _Said) -> dict[str, str]:
    counts = expanded_counts(said.text("SLURM_STEP_TASKS_PER_NODE"))
    size, here = said.number(SLURM_SIZE), counts[said.number("SLURM_NODEID", 0, len(counts) - 1)]
    rank, local_rank = said.number("SLURM_PROCID", 0, size - 1), said.number("SLURM_LOCALID", 0, here - 1)
    job, step = (said.number(name) if name in said.environ else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    several = len(counts) > 1 and "MASTER_ADDR" not in said.environ
    host = first_host(said.text("SLURM_STEP_NODELIST")) if several else HERE
    numbers = {name: str(number) for name, number in zip(TORCH, (rank, size, local_rank, here), strict=True)}
    return numbers | said.head(host, FIRST_PORT + (31 * job + step) % NUM_PORTS)


def _by_mpi(said: _Said, names: tuple[str, ...]) -> dict[str, str]:
    ranks = said.ranks(names)
    if ranks["LOCAL_WORLD_SIZE"] == ranks["WORLD_SIZE"]:
        return ranks | said.head(HERE, FIRST_OF_MPI + _starter(names[0]) % NUM_OF_MPI)
    if "MASTER_ADDR" not in said.environ:
        raise UserError(
            "mpirun does not say on which machine the first process runs: give MASTER_ADDR (mpirun -x MASTER_ADDR=HOST)"
        )
    return ranks | said.head(HERE, FIRST_OF_MPI)


def _starter(name: str) -> int:
    """The process id of mpirun, by which two of its jobs on a machine meet apart: of the nearest parent in whose
    environment `name` is not, for a script may stand between. Where that cannot be read it is the nearest."""
    process = os.getppid()
    try:
        while f"\0{name}=".encode() in b"\0" + Path(f"/proc/{process}/environ").read_bytes():
            status = Path(f"/proc/{process}/stat").read_text(errors="replace")
            process = int(status.rpartition(")")[2].split()[1])  # after the command's name, which may hold anything
    except OSError:
        pass
    return process


def gpu_of(local_rank: int, num_visible: int) -> int:
    """Which of the GPUs that a process sees is its own. A task of srun that sees its own alone (--gpus-per-task) has
    the first of them, whatever its number on the machine is; of several tasks with two each, every one takes one of
    its own."""
    return local_rank % num_visible


def expanded_counts(text: str) -> list[int]:
    """Slurm's tasks of each machine: `4(x2),3` is 4, 4, 3. Raises `UserError` for what is none."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", part)
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}: unset {SLURM_SIZE}, or start this with srun")
        count, times = match.groups(default="1")
        found += [int(count)] * int(times)
    return found


def first_host(text: str) -> str:
    """The first of Slurm's list of machines: of `gpu[03-05,09],login1` it is gpu03. Raises `UserError` if it names
    none."""
    first = re.fullmatch(r"((?:[^,\[\]]|\[\d[^\]]*\])+)(?:,.*)?", text)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST is {text!r}, which names no machine: give MASTER_ADDR")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[1])
