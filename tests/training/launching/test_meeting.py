"""Where machines meet: who is the first of them, who is gone, and whose clock is wrong."""

import pickle
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    _NodeDesc,
    _RendezvousState,
)

from fastarat.common.errors import UserError
from fastarat.common.processes import GRACE_S
from fastarat.training.launching import meeting as meeting_module
from fastarat.training.launching.meeting import Meeting, _check_clock, meeting_of

NODES = [_NodeDesc(f"10.0.0.{i}", 7, 0) for i in range(4)]


def test_the_machine_that_hosts_the_store_is_the_first_and_those_that_go_are_seen():
    meeting = meeting_of(None, port=0)
    state = meeting._state_holder.state
    state.participants = dict.fromkeys(NODES, 0)
    meeting.host = NODES[2].addr
    ranks = {}
    for node in NODES:
        meeting._this_node = node
        ranks[node.addr] = meeting._get_world()
    assert ranks == {"10.0.0.2": (0, 4), "10.0.0.0": (1, 4), "10.0.0.1": (2, 4), "10.0.0.3": (3, 4)}
    meeting._state_holder.sync = lambda: None  # type: ignore[method-assign]
    assert meeting.num_gone() == meeting.num_nodes_waiting() == 0
    del state.participants[NODES[3]]
    assert meeting.num_gone() == meeting.num_nodes_waiting() == 1


@pytest.mark.parametrize("rounds_before", [0, 1])
def test_a_machine_has_come_late_if_others_trained_before_it_came(rounds_before):
    meeting = meeting_of(None, port=0)
    state = meeting._state_holder.state
    state.participants, state.round = {meeting._this_node: 0}, rounds_before
    meeting._get_world()
    state.round += 1  # it starts again, with the others
    meeting._get_world()
    assert meeting.came_late == (rounds_before > 0)


@pytest.mark.parametrize(("seconds", "said"), [(60, "60 s ahead of"), (-60, "60 s behind"), (3, None), (-3, None)])
def test_a_machine_whose_clock_is_far_from_the_hosts_is_refused(seconds, said):
    state = _RendezvousState()
    beat = datetime.now(UTC) - timedelta(seconds=seconds)
    state.last_heartbeats = {NODES[0]: datetime.now(UTC) - timedelta(hours=1), NODES[1]: beat}
    backend: Any = SimpleNamespace(get_state=lambda: (pickle.dumps(state), b""))
    if said is None:
        _check_clock(backend, NODES[1].addr)
        return
    with pytest.raises(UserError, match=f"^this machine's clock is {said}"):
        _check_clock(backend, NODES[1].addr)


def test_a_machine_alone_meets_itself():
    meeting: Meeting = meeting_of(None, port=0)
    info = meeting.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1) and meeting.num_gone() == 0
    meeting.end()
    assert meeting.is_closed()


def test_the_end_is_told_by_the_host_alone_and_only_to_machines_that_were_not_in():
    others: Meeting = meeting_of(None, port=0)
    others.host = "10.0.0.1"
    others.end(is_finished=True)
    assert not others.was_finished()
    meeting: Meeting = meeting_of(None, port=0)
    meeting.end(is_finished=True)
    assert meeting.was_finished()
    meeting._met = frozenset(NODES)
    assert not meeting.was_finished()


def test_the_host_stays_until_others_know():
    meeting: Meeting = meeting_of(None, port=0)
    state = meeting._state_holder.state
    assert not meeting._is_heard(0)
    for waiting in (state.wait_list, state.redundancy_list):  # they look every second
        waiting.add(NODES[0])
        assert meeting._is_heard(3) and not meeting._is_heard(5)
        waiting.clear()
    state.participants = {NODES[0]: 0}
    assert meeting._is_heard(GRACE_S - 1) and not meeting._is_heard(GRACE_S + 1)


@pytest.fixture
def rounds(monkeypatch) -> list[list[str]]:
    """Whom each round of torch's own finds, by their addresses."""
    found: list[list[str]] = []

    def next_round(meeting: Any) -> str:
        meeting._met = frozenset(_NodeDesc(address, 7, 0) for address in found.pop(0))
        return f"{len(found)} left"

    monkeypatch.setattr(DynamicRendezvousHandler, "next_rendezvous", next_round)
    monkeypatch.setattr(meeting_module, "HEARTBEAT_S", 0)
    return found


def unmade() -> Meeting:
    """A meeting without a store."""
    meeting = Meeting.__new__(Meeting)
    meeting.host = "10.0.0.1"
    return meeting


def test_machines_do_not_begin_without_the_one_that_hosts_the_store(rounds):
    """Another one would begin the run anew on its own disk."""
    rounds += [["10.0.0.2"], ["10.0.0.2", "10.0.0.3"], ["10.0.0.2", "10.0.0.1"], ["10.0.0.2"]]
    assert unmade().next_rendezvous() == "1 left"


def test_they_do_not_wait_for_it_for_ever(rounds, monkeypatch):
    rounds += [["10.0.0.2"]] * 2
    monkeypatch.setattr(meeting_module, "JOIN_S", -1)
    with pytest.raises(RendezvousTimeoutError):
        unmade().next_rendezvous()
