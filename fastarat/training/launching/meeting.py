"""Where the machines of a run meet: torch's rendezvous, whose store lies on one of them."""

import json
import pickle
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousInfo, RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousTimeout,
    _NodeDesc,
    _RendezvousExitOp,
)

from fastarat.common.errors import UserError, WorkError
from fastarat.common.network import give_up_after, own_address
from fastarat.common.processes import GRACE_S
from fastarat.training.agreement import SAME_ON_ALL

NAME = "fastarat"
HERE = "127.0.0.1"
JOIN_S = 1800
"""seconds for which a machine waits for the others to come"""
LAST_CALL_S = 5
"""seconds for which those that are enough wait for more; who comes later is taken in, too"""
HEARTBEAT_S, MOST_MISSED = 2, 5
"""a machine of which nothing was heard for so many heartbeats is lost"""
ANSWER_S = 60
"""seconds in which the store has to answer: a network that fails for less does not end a run"""
MOST_APART_S = 5
"""seconds by which clocks may differ, since each machine dates its heartbeats by its own"""
_CONNECT_S = 5
_FINISHED = "fastarat/finished"
"""key of the store: there when the run has come to its end"""
_SETTINGS = "fastarat/settings"
"""key of the store: the settings and versions of the machine that hosts it"""


@dataclass(frozen=True)
class Machines:
    """Several machines that run the same command."""

    least: int
    most: int
    rendezvous: str
    """HOST:PORT of one of them"""

    @property
    def place(self) -> tuple[str, int]:
        """Host and port. Raises `UserError` for what is neither."""
        host, _, port = self.rendezvous.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(f"--rendezvous {self.rendezvous}: give the HOST:PORT of one of the machines")
        return host, int(port)


class Meeting(DynamicRendezvousHandler):
    """torch's rendezvous, in which the machine that hosts the store is the first, so that the one which writes the run
    stays the same, and in which machines that are gone are seen."""

    host = HERE
    came_late = False
    """whether others had trained before this machine came in"""
    _met: frozenset[_NodeDesc] = frozenset()

    def next_rendezvous(self) -> RendezvousInfo:
        """Where the processes meet, once enough machines have come, and the one that hosts the store is among them:
        without it, as when it was silent for a while, another one would begin the run anew on a disk of its own."""
        end = time.monotonic() + JOIN_S
        while True:
            found = super().next_rendezvous()
            if any(node.addr == self.host for node in self._met):
                return found
            if time.monotonic() > end:
                raise RendezvousTimeoutError
            time.sleep(HEARTBEAT_S)

    def _get_world(self) -> tuple[int, int]:
        if not self._met:
            self.came_late = self._state_holder.state.round > 0
        nodes = sorted(self._state_holder.state.participants, key=lambda node: (node.addr != self.host, node))
        self._met = frozenset(nodes)
        return nodes.index(self._this_node), len(nodes)

    def num_gone(self) -> int:
        """How many of the machines that train are no longer there, or train with others. Raises `RendezvousError`."""
        with self._heartbeat_lock:
            self._state_holder.sync()
            return len(self._met - self._state_holder.state.participants.keys())

    def num_nodes_waiting(self) -> int:
        """How many machines wait to come in, or are gone: torch starts the processes again if there are any."""
        return super().num_nodes_waiting() or self.num_gone()

    def leave(self) -> None:
        """Take this machine out. Without the one that hosts the store the others cannot go on: the run ends for all,
        and the host stays until they know."""
        if self._this_node.addr == self.host:
            self.end()
        else:
            self._leave()

    def end(self, *, is_finished: bool = False) -> None:
        """End the run for all machines. The host of the store stays until those in it know, and tells those that come
        later whether it has come to its end on all machines."""
        is_host = self._this_node.addr == self.host
        if is_host and is_finished:
            self._store.set(_FINISHED, "")
        self.shutdown()
        self._leave()
        began = time.monotonic()
        while is_host and self._is_heard(time.monotonic() - began):
            time.sleep(0.1)
            self._state_holder.sync()

    def was_finished(self) -> bool:
        """Whether the run has come to its end before this machine came in."""
        with suppress(RuntimeError):  # the store has gone
            return not self._met and self._store.check([_FINISHED])
        return False

    def check_settings(self, mine: Mapping[str, str]) -> None:
        """Hold this machine's settings against the host's before it comes in: its processes would find out later, and
        end the run for all. Raises `UserError`."""
        if self._this_node.addr == self.host:
            self._store.set(_SETTINGS, json.dumps(mine))
            return
        theirs = json.loads(self._store.get(_SETTINGS))  # waits for the host
        if other := [name for name, value in mine.items() if theirs.get(name) != value]:
            raise UserError(f"this machine has another {other[0]} than {self.host}: {SAME_ON_ALL}")

    def _is_heard(self, waited: float) -> bool:
        """Whether others may not know yet, after so many seconds: those that train say so when they do. Those that wait
        to come in look every second."""
        state = self._state_holder.state
        waiting = state.wait_list or state.redundancy_list
        return bool(state.participants and waited < GRACE_S) or bool(waiting and waited < 2 * HEARTBEAT_S)

    def _leave(self) -> None:
        self._stop_heartbeats()
        with suppress(RendezvousError):  # the store was on a machine that has gone already
            self._op_executor.run(_RendezvousExitOp(), self._get_deadline(timedelta(seconds=HEARTBEAT_S)))


def meeting_of(machines: Machines | None, port: int) -> Meeting:
    """Where this machine meets the others, or only its own processes, at any free port if `port` is 0.

    Raises `UserError` if no way leads to the others, if the port is in use, or if this machine's clock is wrong,
    `WorkError` if the one that hosts the store does not come.
    """
    least = most = 1
    host = own = HERE
    if machines:
        (name, port), least, most = machines.place, machines.least, machines.most
        try:
            host = socket.gethostbyname(name)
            own = own_address(host)
        except OSError as error:
            raise UserError(f"--rendezvous {machines.rendezvous}: no way leads there ({error.strerror})") from error
        if host.startswith("127."):
            host = own
    store = _store(host, port, is_host=own == host)
    backend = C10dRendezvousBackend(store, NAME)
    if own != host:
        _check_clock(backend, host)
    timeout = RendezvousTimeout(join=timedelta(seconds=JOIN_S), last_call=timedelta(seconds=LAST_CALL_S))
    beats = {"keep_alive_interval": HEARTBEAT_S, "keep_alive_max_attempt": MOST_MISSED}
    meeting = Meeting.from_backend(NAME, store, backend, least, most, own, timeout, **beats)
    meeting.host = host
    return meeting


def _store(host: str, port: int, *, is_host: bool) -> TCPStore:
    if is_host:
        try:
            return TCPStore(host, port, is_master=True, multi_tenant=True, timeout=timedelta(seconds=ANSWER_S))
        except RuntimeError as error:
            raise UserError(
                f"port {port} cannot be used (another program listens there): give another in --rendezvous"
            ) from error
    end = time.monotonic() + JOIN_S
    while True:
        try:
            store = TCPStore(host, port, is_master=False, multi_tenant=True, timeout=timedelta(seconds=_CONNECT_S))
        except RuntimeError as error:  # a signal is answered in between
            if time.monotonic() > end:
                raise WorkError(
                    f"{host}:{port} has not answered in {JOIN_S} s: start the command there, too"
                ) from error
            time.sleep(0.2)
            continue
        store.set_timeout(timedelta(seconds=ANSWER_S))
        give_up_after(ANSWER_S, host, port)
        return store


def _check_clock(backend: C10dRendezvousBackend, host: str) -> None:
    """Raise `UserError` if this machine's clock and the host's are so far apart that each would take the other for
    lost. The host's last heartbeat tells its clock, and is never old: the store would not answer without it."""
    end = time.monotonic() + ANSWER_S
    while time.monotonic() < end:
        found = backend.get_state()
        beats = pickle.loads(found[0]).last_heartbeats if found else {}  # as torch does
        for node, beat in beats.items():
            if node.addr == host:
                apart = (datetime.now(UTC) - beat).total_seconds()
                if not -MOST_APART_S <= apart <= MOST_APART_S + 2 * HEARTBEAT_S:
                    order = "ahead of" if apart > 0 else "behind"
                    raise UserError(
                        f"this machine's clock is {abs(apart):.0f} s {order} that of {host}: set both by the network's "
                        "time (timedatectl set-ntp true)"
                    )
                return
        time.sleep(0.2)
