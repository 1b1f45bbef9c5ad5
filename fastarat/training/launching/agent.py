"""torch's elastic agent, which starts the processes of a machine, watches them, and starts them again."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousError

from fastarat.common.console import notice
from fastarat.common.errors import UserError
from fastarat.common.processes import AGAIN, GRACE_S
from fastarat.common.signals import SAVING
from fastarat.training.launching.causes import cause_of
from fastarat.training.launching.meeting import Meeting

ORDERLY_S = 30
"""seconds for those that are told to end while all is well: they finish a step, and save"""
_ENDED = "fastarat/ended"
"""key of a store: how many machines' processes have ended by themselves"""
# pyright: reportIncompatibleVariableOverride=false, reportCallIssue=false
# A decorator of torch's hides from it that these are methods.


class Agent(LocalElasticAgent):
    """Torch's agent, but: the others end within seconds when one fails; what a restart would only meet again ends the
    run at once, or, where it is a machine that came late, its part in it; machines that fall silent are seen; those
    that start again are told why; and one that is done waits for the others.

    `said`: a folder in which processes that fail say why.
    """

    def __init__(self, spec: WorkerSpec, meeting: Meeting, said: Path):
        super().__init__(spec, DefaultLogsSpecs(str(said)))
        self.meeting, self.said, self.why = meeting, said, ""
        self.patience = ORDERLY_S
        self.all_ended = False
        """whether the processes of all machines have come to their end"""
        self.is_unfit = False
        """whether this machine, which came late, has not what the others train with, as other images"""

    def signal_processes(self, number: int) -> None:
        """Send a signal to the processes of this machine that still run."""
        for process in self._processes():
            process.send_signal(number)  # which leaves alone one that has ended

    def _invoke_run(self, role: str = DEFAULT_ROLE) -> RunResult:
        try:
            return super()._invoke_run(role)
        except RendezvousConnectionError:
            self.patience = GRACE_S  # who waits for the machine that has gone cannot save
            raise

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        failed = self._failed()
        if failed:
            self._close(signal.SIGTERM, GRACE_S)
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            ranks = {worker_group.workers[i].global_rank for i in failed}
            # What torch, or this agent, has ended is no cause.
            result = replace(result, failures={r: f for r, f in result.failures.items() if not ranks or r in ranks})
            cause = cause_of(result.failures, self.said)
            self.why = cause.in_short if cause else "a process was told to end"
            if cause and not cause.may_pass:
                self._remaining_restarts = 0
                self.is_unfit = self.meeting.came_late and cause.kind is UserError
        elif result.state == WorkerState.HEALTHY:
            if self.meeting.is_closed():
                self.why, self._remaining_restarts = "another machine has ended the run, and says why", 0
                return RunResult(WorkerState.FAILED)
            if worker_group.spec.max_restarts == 0 and self.meeting.num_gone():
                self.why = "a machine is gone"
                return RunResult(WorkerState.FAILED)
        return result

    def _exit_barrier(self) -> None:
        """Wait until the processes of all machines have ended: the first still draws and reports when the others are
        done, for minutes if need be. Torch would wait in the store, and hold up this machine's signs of life, so that
        the others took it for lost."""
        assert self._store is not None
        number = self._worker_group.group_world_size or 1
        with suppress(RendezvousError, RuntimeError):  # the machine with the store has ended
            self.all_ended = self._store.add(_ENDED, 1) >= number
            while not self.all_ended and not self.meeting.num_gone():
                time.sleep(0.2)
                self.all_ended = self._store.add(_ENDED, 0) >= number

    def _failed(self) -> list[int]:
        """The local ranks of processes that have failed by themselves."""
        return [rank for rank, process in enumerate(self._processes()) if process.poll() not in (None, 0)]

    def _processes(self) -> list[Popen]:
        """The processes of this machine by their local ranks, those that have ended too."""
        handlers = self._pcontext.subprocess_handlers if self._pcontext else {}  # type: ignore[attr-defined]
        return [handlers[rank].proc for rank in sorted(handlers)]

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self.why = self.why or ("a machine is gone" if self.meeting.num_gone() else "a machine comes in")
        if worker_group.group_rank == 0:
            notice(f"{self.why}: starting again with who is there")
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        # Who waits for a machine that is gone cannot save.
        self._close(signal.SIGTERM, GRACE_S if self.meeting.num_gone() else ORDERLY_S)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 0) -> None:
        self._close(death_sig, self.patience)  # torch 2.11 gives no time, later ones their own

    def _close(self, number: signal.Signals, seconds: int) -> None:
        if not self._pcontext:
            return
        # Of those that are told to end while all is well, and should have saved.
        running = [process for process in self._processes() if process.poll() is None]
        self._pcontext.close(number, seconds)
        killed = sum(process.poll() in (None, -signal.SIGKILL) for process in running)
        if killed and seconds == ORDERLY_S:
            after = f"{killed} of {len(running)} processes had not ended {seconds} s after {number.name}"
            notice(f"{after} and were killed: the newest checkpoint is from before that")

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self.why:
            os.environ[AGAIN], self.why = self.why, ""
        for file in self.said.rglob("error.json"):  # of those before
            file.unlink()
        # They would be killed by it while Python starts in them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (SAVING,))
        try:
            return super()._start_workers(worker_group)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
