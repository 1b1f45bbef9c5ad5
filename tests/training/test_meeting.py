"""Where machines meet: who is the first of them, who is gone, and whose clock is wrong."""

import pickle
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _NodeDesc, _RendezvousState

from fastarat.common.errors import UserError
from fastarat.training.meeting import Meeting, _check_clock, meeting_of

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
