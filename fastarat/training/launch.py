"""Start N processes of this command with torch's own elastic launcher."""

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import read_json
from fastarat.common.processes import LAUNCHER

HOST = "127.0.0.1"
ENDING = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP")
"""signals that the launcher passes on to its processes, by their names"""


def launch(num_processes: int, args: list[str], port: int, *, on_gpus: bool = False) -> int:
    """Run `fastarat ARGS` in N processes that know each other; returns the command's exit code.

    `port` 0 takes any free one. `on_gpus`: each process has a GPU of those in CUDA_VISIBLE_DEVICES, sees no other, and
    knows it as device 0: so all of them compile the same code, and find it compiled. Raises what the first process to
    fail said, and `UserError` if the port that was asked for is in use.
    """
    check_port(port)
    # What a process has to say it says itself, in one line; the launcher's own reports would repeat it.
    for name in ("torch.distributed", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_processes, 1)))
    os.environ[LAUNCHER] = str(os.getpid())
    with TemporaryDirectory(prefix="fastarat-", ignore_cleanup_errors=True) as said:
        return _run(num_processes, args, port, said=Path(said), on_gpus=on_gpus)


def _run(num_processes: int, args: list[str], port: int, *, said: Path, on_gpus: bool) -> int:
    """`said`: a folder in which processes that fail say why."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id="fastarat",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{HOST}:{port}",
        local_addr=HOST,
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(str(said)),
        signals_to_handle=",".join(_answered()),
        virtual_local_rank=on_gpus,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "fastarat", *args)
    except ChildFailedError as error:
        _raise_killed(error.failures)
        _raise_said(said)
        # A signal was sent to one of them, and all have stopped.
        code = max(failure.exitcode for failure in error.failures.values())
        return code if code > 0 else 128 - code
    except SignalException as error:
        _raise_said(said)
        return 128 + error.sigval  # every process has saved its checkpoint and said so
    return 0


def _answered() -> list[str]:
    """Those of `ENDING` that end a command: not SIGHUP where it is ignored, which is what nohup is for."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [name for name in ENDING if name != "SIGHUP" or not ignored]


def _raise_killed(failures: dict[int, ProcessFailure]) -> None:
    """Speak for a process that could say nothing itself. SIGTERM is what the launcher ends the others with."""
    for rank, failure in sorted(failures.items()):
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            cause = "NCCL waited for another process, or a library failed" if name == "SIGABRT" else "out of memory?"
            raise WorkError(
                f"process {rank} was killed ({name}; {cause}); --resume goes on from the last checkpoint"
            ) from None


def _raise_said(folder: Path) -> None:
    """Raise what the first process to fail has said, if any has: the others failed since it was gone."""
    files = sorted(folder.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns)
    for file in files:
        try:
            said = read_json(file)
            kind, text = UserError if said["code"] == 2 else WorkError, said["message"]["message"]
        except (UserError, KeyError, TypeError):  # no file of ours
            continue
        raise kind(text) from None
    if files:
        raise WorkError("a process failed, and what it said of it cannot be read") from None


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
