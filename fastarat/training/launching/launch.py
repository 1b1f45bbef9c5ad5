"""Start N processes of this command with torch's own elastic launcher, on one machine or on each of several."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from fastarat.common.console import notice
from fastarat.common.errors import UserError, WorkError
from fastarat.common.processes import AGAIN, LAUNCHER, num_cores
from fastarat.common.signals import saving_answered
from fastarat.training.launching.agent import Agent
from fastarat.training.launching.causes import raise_why
from fastarat.training.launching.meeting import HERE, JOIN_S, Machines, Meeting, meeting_of

ENDING = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP")
"""signals that the launcher passes on to its processes, by their names"""
QUIET = ("torch.distributed", "torch.distributed.elastic.agent.server.api")
"""what a process has to say it says itself, in one line; these loggers would repeat it"""


def launch(
    num_processes: int,
    args: list[str],
    port: int = 0,
    machines: Machines | None = None,
    *,
    goes_on: str,
    max_restarts: int = 0,
    on_gpus: bool = False,
    settings: Mapping[str, str] | None = None,
) -> int:
    """Run `fastarat ARGS` in N processes that know each other, and those of the other `machines`; returns the command's
    exit code.

    `port`, of one machine alone: 0 takes any free one. `goes_on` says in errors how to go on. `max_restarts`: how often
    processes are started again after one of them was lost. `on_gpus`: each process has a GPU of those in
    CUDA_VISIBLE_DEVICES, sees no other, and knows it as device 0: so all of them compile the same code, and find it
    compiled. `settings`: what a machine that comes while the others train has to have, too. Raises what the first
    process to fail said, and as `meeting_of` does.
    """
    if machines is None:
        check_port(port)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    meeting = meeting_of(machines, port)
    if machines and machines.least < machines.most and settings:
        meeting.check_settings(settings)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(num_cores() // num_processes, 1)))
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.pop(AGAIN, None)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(_answered())
    # Each start gets a store of its own. In the one that torch would share, processes that start again find where those
    # before them listened, and machines that come later do not find it.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    spec = WorkerSpec(
        role="default_role",
        local_world_size=num_processes,
        entrypoint=sys.executable,
        args=("-m", "fastarat", *args),
        rdzv_handler=meeting,
        max_restarts=max_restarts,
        monitor_interval=0.1,
        virtual_local_rank=on_gpus,
    )
    with TemporaryDirectory(prefix="fastarat-", ignore_cleanup_errors=True) as said:
        agent = Agent(spec, meeting, Path(said))
        with saving_answered(lambda number, _: agent.signal_processes(number)):
            return _run(agent, meeting, machines, goes_on)


def _run(agent: Agent, meeting: Meeting, machines: Machines | None, goes_on: str) -> int:
    try:
        result: RunResult | None = agent.run()  # type: ignore[assignment]
    except SignalException as error:
        meeting.leave()
        raise_why({}, agent.said, goes_on)
        return 128 + error.sigval  # every process has saved its checkpoint and said so, or was killed and the agent has
    except RendezvousClosedError as error:
        if meeting.was_finished():
            notice("the other machines have finished before this one came in")
            return 0
        raise WorkError(f"another machine has ended the run, and says why; {goes_on}") from error
    except RendezvousTimeoutError as error:
        raise WorkError(f"too few machines came within {JOIN_S} s: start the command on each; {goes_on}") from error
    except RendezvousConnectionError as error:
        where = f"{machines.rendezvous}, where the machines meet," if machines else "the launcher's store"
        raise WorkError(f"{where} does not answer any more: is that machine gone? {goes_on}") from error
    except KeyboardInterrupt:
        meeting.leave()
        raise
    else:
        if agent.is_unfit:
            meeting.leave()
        else:
            meeting.end(is_finished=agent.all_ended)
        return _code(result, agent, goes_on)


def _code(result: RunResult | None, agent: Agent, goes_on: str) -> int:
    """The exit code; None is the result of a machine that was never needed."""
    if result is None or not result.is_failed():
        return 0
    raise_why(result.failures, agent.said, goes_on)
    if not result.failures:
        raise WorkError(f"{agent.why}; {goes_on}")
    # A signal was sent to one of them, and all have stopped.
    code = max(failure.exitcode for failure in result.failures.values())
    return code if code > 0 else 128 - code


def _answered() -> list[str]:
    """Those of `ENDING` that end a command: not SIGHUP where it is ignored, which is what nohup is for."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [name for name in ENDING if name != "SIGHUP" or not ignored]


def check_port(port: int) -> None:
    """Raise `UserError` if another program listens on `port` of this machine."""
    if not 0 <= port < 65536:
        raise UserError(f"--port {port} is no port: give 0 (any free one) to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HERE, port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror}): give another --port, or leave it out for a free one"
            ) from error
