"""Start N processes of this command with torch's own elastic launcher, on one machine or on each of several."""

import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fastarat.common.distributed import ANOTHER_ENDED
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import read_json
from fastarat.common.network import own_address
from fastarat.common.processes import LAUNCHER

HOST = "127.0.0.1"
ENDING = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP")
"""signals that the launcher passes on to its processes, by their names"""


JOIN_S = 1800
"""seconds for which a machine waits for the others to come"""


@dataclass(frozen=True)
class Machines:
    """Several machines that run the same command."""

    number: int
    rendezvous: str
    """HOST:PORT of one of them"""

    @property
    def place(self) -> tuple[str, int]:
        """Host and port. Raises `UserError` for what is neither."""
        host, _, port = self.rendezvous.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(f"--rendezvous {self.rendezvous}: give the HOST:PORT of one of the machines")
        return host, int(port)


def launch(
    num_processes: int, args: list[str], port: int, machines: Machines | None = None, *, on_gpus: bool = False
) -> int:
    """Run `fastarat ARGS` in N processes that know each other, and those of the other `machines`; returns the command's
    exit code.

    `port`, of one machine alone: 0 takes any free one. `on_gpus`: each process has a GPU of those in
    CUDA_VISIBLE_DEVICES, sees no other, and knows it as device 0: so all of them compile the same code, and find it
    compiled. Raises what the first process to fail said, and `UserError` if the port that was asked for is in use, or
    no way leads to the other machines.
    """
    if machines is None:
        check_port(port)
    place = _together(machines) if machines else _alone(port)
    # What a process has to say it says itself, in one line; the launcher's own reports would repeat it.
    for name in ("torch.distributed", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_processes, 1)))
    os.environ[LAUNCHER] = str(os.getpid())
    with TemporaryDirectory(prefix="fastarat-", ignore_cleanup_errors=True) as said:
        return _run(num_processes, args, place, said=Path(said), on_gpus=on_gpus)


def _alone(port: int) -> dict[str, Any]:
    """What torch's launcher has to know to start the processes of one machine."""
    return {"min_nodes": 1, "max_nodes": 1, "rdzv_endpoint": f"{HOST}:{port}", "local_addr": HOST}


def _together(machines: Machines) -> dict[str, Any]:
    """The same of several machines. Raises `UserError` if no way leads to the others."""
    host, port = machines.place
    try:
        there = socket.gethostbyname(host)
        own = own_address(there)
    except OSError as error:
        raise UserError(f"--rendezvous {machines.rendezvous}: no way leads there ({error.strerror})") from error
    return {
        "min_nodes": machines.number,
        "max_nodes": machines.number,
        "rdzv_endpoint": f"{there}:{port}",
        "rdzv_configs": {"join_timeout": JOIN_S, "is_host": own == there or there.startswith("127.")},
        "local_addr": own,
    }


def _run(num_processes: int, args: list[str], place: dict[str, Any], *, said: Path, on_gpus: bool) -> int:
    """`said`: a folder in which processes that fail say why."""
    config = LaunchConfig(
        **place,
        nproc_per_node=num_processes,
        run_id="fastarat",
        rdzv_backend="c10d",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(str(said)),
        signals_to_handle=",".join(_answered()),
        virtual_local_rank=on_gpus,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "fastarat", *args)
    except ChildFailedError as error:
        raise_why(error.failures, said)
        # A signal was sent to one of them, and all have stopped.
        code = max(failure.exitcode for failure in error.failures.values())
        return code if code > 0 else 128 - code
    except SignalException as error:
        raise_why({}, said)
        return 128 + error.sigval  # every process has saved its checkpoint and said so
    return 0


def _answered() -> list[str]:
    """Those of `ENDING` that end a command: not SIGHUP where it is ignored, which is what nohup is for."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [name for name in ENDING if name != "SIGHUP" or not ignored]


def raise_why(failures: dict[int, ProcessFailure], folder: Path) -> None:
    """Raise why processes failed, if one of them says or shows it.

    One that was killed could say nothing itself, and is the cause of what others say. Of those that said why, in files
    of `folder`, the first counts that does not say it of another one. An abort counts after them: libraries abort those
    that wait for a process that is gone.
    """
    killed, aborted = _killed(failures)
    said = _said(folder)
    own = [error for error in said if not str(error).startswith(ANOTHER_ENDED)]
    for error in (*killed, *own, *aborted, *said):
        raise error from None


def _killed(failures: dict[int, ProcessFailure]) -> tuple[list[WorkError], list[WorkError]]:
    """For each process that a signal ended an error that says so, and apart from them those that aborted. SIGTERM is
    what the launcher ends the others with."""
    killed, aborted = [], []
    for rank, failure in sorted(failures.items()):
        if failure.exitcode >= 0 or failure.exitcode == -signal.SIGTERM:
            continue
        number = signal.Signals(-failure.exitcode)
        cause = "a library failed, or waited too long" if number == signal.SIGABRT else "out of memory?"
        error = WorkError(
            f"process {rank} was killed ({number.name}; {cause}); --resume goes on from the last checkpoint"
        )
        (aborted if number == signal.SIGABRT else killed).append(error)
    return killed, aborted


def _said(folder: Path) -> list[UserError | WorkError]:
    """What processes said, in the order of time; last that there is something which cannot be read."""
    errors: list[UserError | WorkError] = []
    files = sorted(folder.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns)
    for file in files:
        try:
            said = read_json(file)
            kind, text = UserError if said["code"] == 2 else WorkError, said["message"]["message"]
        except (UserError, KeyError, TypeError):  # no file of ours
            continue
        errors.append(kind(text))
    if len(errors) < len(files):
        errors.append(WorkError("a process failed, and what it said of it cannot be read"))
    return errors


def check_port(port: int) -> None:
    """Raise `UserError` if another program listens on `port` of this machine."""
    if not 0 <= port < 65536:
        raise UserError(f"--port {port} is no port: give 0 (any free one) to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror}): give another --port, or leave it out for a free one"
            ) from error
