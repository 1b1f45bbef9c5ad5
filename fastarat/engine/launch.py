"""Start N processes of this command with torch's own elastic launcher."""

import logging
import os
import signal
import socket
import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fastarat.errors import UserError, WorkError

HOST = "127.0.0.1"


def launch(num_processes: int, args: list[str], port: int) -> int:
    """Run `fastarat ARGS` in N processes that know each other; returns the command's exit code.

    `port` 0 takes any free one. Raises `UserError` if the port that was asked for is in use.
    """
    check_port(port)
    # What a process has to say it says itself, in one line; the launcher's own reports would repeat it.
    for name in ("torch.distributed", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_processes, 1)))
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
    )
    try:
        elastic_launch(config, sys.executable)("-m", "fastarat", *args)
    except ChildFailedError as e:
        codes = [failure.exitcode for failure in e.failures.values()]
        first = e.failures.get(0)
        if first is not None and first.exitcode < 0 and first.exitcode != -signal.SIGTERM:
            # The process that speaks for all was killed before it could say a word.
            name = signal.Signals(-first.exitcode).name
            raise WorkError(
                f"a process was killed ({name}; out of memory?); --resume goes on from the last checkpoint"
            ) from None
        return 2 if 2 in codes else 1
    except SignalException:
        pass  # every process has saved its checkpoint and said so
    return 0


def check_port(port: int) -> None:
    """Raise `UserError` if another program listens on `port` of this machine."""
    if not 0 <= port < 65536:
        raise UserError(f"--port {port} is no port: give 0 (any free one) to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as e:
            raise UserError(
                f"port {port} cannot be used ({e.strerror}): give another --port, or leave it out for a free one"
            ) from None
