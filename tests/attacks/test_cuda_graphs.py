"""Captured attacks are the direct ones: whatever the number of rows, batch after batch, and told of as well.

CUDA's graphs are pretended: a capture computes nothing, a replay runs what was captured.
"""

import gc
import weakref
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fastarat.attacks.attack import Found
from fastarat.attacks.cuda_graphs import Captured, Counted, Graphs, Mover, _Graph, directly, graphs_on
from fastarat.attacks.fab import fab_t
from fastarat.evaluation.autoattack import driver as module
from fastarat.evaluation.autoattack.prepared_model import prepared
from tests.helpers.attacks import attack_of, autoattacked, broken_by, by_keywords
from tests.helpers.spoiled import Spoiled, nan
from tests.helpers.step_parts import CPU
from tests.helpers.streams import pretend_streams

ROWS = torch.arange(20)
EPS = {"linf": 0.04, "l2": 0.16}
SHORT = {"apgd-ce": {"steps": 25}, "apgd-t": {"steps": 15}, "fab-t": {"steps": 12}, "square": {"queries": 80}}


def attack(name: str, model, x: Tensor, y: Tensor, norm: str, mover: Mover) -> Found:
    """One of the standard's attacks, cut down."""
    settings = {"norm": norm, "eps": EPS[norm], "targets": 2, "mover": mover}
    return by_keywords(attack_of(name))(model, x, y, ROWS, **settings, **SHORT[name])


@pytest.fixture
def net() -> nn.Module:
    """10 classes for images [N, 1, 6, 6] in float64, where other numbers of rows round to nothing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 10)).double().requires_grad_(False)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(20, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pretended(monkeypatch) -> list[int]:
    """The numbers of rows of the graphs that are captured on this CPU as if it were a GPU."""
    sizes = []

    class Graph:
        captured: _Graph

        def replay(self):
            self.captured.advance()

    waits: list = [0]
    streams = []

    @contextmanager
    def capture(graph, *, pool, stream, **_):
        streams.append(stream)
        # PyTorch's own stream is the one of the device where the process first captured.
        assert stream is streams[0] and stream.device == CPU
        assert waits[:2] == [0, "error"], "a move was tried, and waiting is allowed again"
        yield graph

    make = _Graph.__init__

    def noted(self, move, state, size, *given):
        kept = tuple(tensor.clone() for tensor in state)
        make(self, move, state, size, *given)
        self.graph.captured = self
        sizes.append(size)
        torch.testing.assert_close(
            kept, tuple(state), rtol=0, atol=0, equal_nan=True
        )  # it changes nothing that is given

    pretend_streams(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: waits[0])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: waits.insert(0, mode))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(_Graph, "__init__", noted)
    return sizes


class Pair(NamedTuple):
    a: Tensor
    b: Tensor
    calls: Tensor


def swapped(pair: Pair) -> Pair:
    return Pair(pair.b + 1, pair.a, pair.calls + 1)


def test_a_state_moves_on_as_it_would_directly_also_where_its_parts_change_places(pretended):
    captured = Captured(batch=16)
    direct = state = Pair(torch.arange(10.0).view(5, 2), torch.zeros(5, 2), torch.tensor(0))
    for _ in range(5):
        state, direct = captured(("apgd",), swapped, state), swapped(direct)
        assert all(map(torch.equal, state, direct)) and len(state.a) == 5
    assert pretended == [6]  # 5 rows in steps of 2
    # Given back in other places, and one of them changed.
    changed = state._replace(a=state.b + 7, b=state.a)
    expected = swapped(Pair(*(tensor.clone() for tensor in changed)))
    assert all(map(torch.equal, captured(("apgd",), swapped, changed), expected))


def test_fewer_rows_share_a_few_sizes(pretended):
    captured = Captured(batch=250)
    sizes = [captured.size(rows) for rows in range(1, 251)]
    assert len(set(sizes)) <= 8 and sizes == sorted(sizes) and max(sizes) == 250
    assert all(rows <= size < rows + 32 for rows, size in zip(range(1, 251), sizes, strict=True))
    for rows in (40, 33, 40, 64):
        state = Pair(torch.rand(rows, 2), torch.rand(rows, 2), torch.tensor(0))
        assert all(map(torch.equal, captured(("apgd",), swapped, state), swapped(state)))
    assert pretended == [64]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("spoil", [None, nan])
def test_an_attack_finds_the_same_captured(name, norm, spoil, net, images, pretended):
    y, model = net(images).argmax(1), Spoiled(net, spoil) if spoil else net
    captured, num_graphs = Captured(batch=24), []
    for flipped in (False, True):  # the second batch finds graphs of the first
        x, labels = (images.flip(0), y.flip(0)) if flipped else (images, y)
        found, broken, attackable = attack(name, model, x, labels, norm, captured)
        expected, broken_directly, attackable_directly = attack(name, model, x, labels, norm, directly)
        assert torch.equal(broken, broken_directly) and 0 < int(broken.sum()) < len(broken)
        assert torch.equal(attackable, attackable_directly) and attackable.all() == (spoil is None or name == "square")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        num_graphs.append(len(pretended))
    assert len(set(pretended)) > 1, "no compaction changed the number of rows"
    assert num_graphs[1] < 2 * num_graphs[0]


def test_what_cannot_be_captured_runs_directly_and_says_why_once(net, images, pretended, monkeypatch, capsys):
    @contextmanager
    def refuse(graph, *, stream, **_):
        torch.cuda.stream(stream).__enter__()  # PyTorch does not leave it where a capture fails
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    y, captured, here = net(images).argmax(1), Captured(batch=24), torch.cuda.current_stream(CPU)
    for _ in range(2):
        found = attack("apgd-ce", net, images, y, "linf", captured)
        assert all(map(torch.equal, found, attack("apgd-ce", net, images, y, "linf", directly)))
    reason = "operation not permitted when stream is capturing"
    assert captured.problem == reason and torch.cuda.current_stream(CPU) is here
    assert capsys.readouterr().err == f"the attacks run uncaptured: {reason}\n"


def test_no_capture_is_begun_of_a_model_that_waits_for_the_device(net, images, pretended, monkeypatch):
    class Waiting(nn.Module):
        def forward(self, x):
            if torch.cuda.get_sync_debug_mode() == "error":
                raise RuntimeError("called a synchronizing CUDA operation")
            return net(x)

    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: pytest.fail("a capture was begun"))
    y, captured, here = net(images).argmax(1), Captured(batch=24), torch.cuda.current_stream(CPU)
    with prepared(Waiting(), images[:2]) as waiting:  # what it says of a model that fails is no advice here
        found = attack("apgd-ce", waiting, images, y, "linf", captured)
    assert captured.stream is not None and here.waited_for is captured.stream  # type: ignore[attr-defined]
    assert all(map(torch.equal, found, attack("apgd-ce", net, images, y, "linf", directly)))
    assert captured.problem == "called a synchronizing CUDA operation" and torch.cuda.get_sync_debug_mode() == 0


def test_too_little_memory_is_no_reason_to_run_directly(pretended, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "graph", full)
    with pytest.raises(torch.OutOfMemoryError):
        Captured(batch=4)(("apgd",), swapped, Pair(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor(0)))


def test_passes_are_told_from_outside_the_graph(net, images, pretended):
    told = []
    model, mover = Graphs(batch=24).of(Counted(net, told.append))
    assert model is net
    settings = {"norm": "linf", "eps": 1e-9, "targets": 1, "steps": 7, "mover": mover}
    found = by_keywords(fab_t)(model, images, net(images).argmax(1), ROWS, **settings)
    assert not found.broken.any() and told == 7 * [2 * 20]


def test_a_model_has_its_graphs_for_all_batches(net):
    graphs = Graphs(batch=24)
    (_, first), (_, second) = graphs.of(net), graphs.of(net)
    assert first is second
    graphs.of(Counted(net, lambda n: None))
    assert list(graphs.captured) == [net]


def test_graphs_of_an_attack_are_gone_before_the_next_and_so_is_their_memory(net, images, pretended, monkeypatch):
    graphs, alive, pools = Graphs(batch=24), [], []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: pools.append((0, len(pools))) or pools[-1])
    _, mover = graphs.of(net)
    state = Pair(torch.rand(5, 2), torch.rand(5, 2), torch.tensor(0))
    for _ in range(2):
        assert all(map(torch.equal, mover(("apgd",), swapped, state), swapped(state)))
        alive += [weakref.ref(graph) for graph in graphs.captured[net].graphs.values()]
        assert alive[-1]() is not None
        graphs.forget()
        gc.collect()
        assert not any(graph() for graph in alive)
    assert len(pools) == len(alive) == 2


def test_only_a_gpu_captures_and_never_a_randomised_model():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert graphs_on(gpu, 8, random=False) and not graphs_on(gpu, 8, random=True)
    assert not graphs_on(cpu, 8, random=False)


def test_a_captured_autoattack_ends_in_the_same_flags_and_tells_of_all_images(net, images, pretended, monkeypatch):
    settings = {"norm": "linf", "eps": EPS["linf"], "attacks": ("apgd-ce",), "batch": 8}
    y, told = net(images).argmax(1), []
    direct = autoattacked(net, images, y, **settings)
    assert not pretended
    graphs = Graphs(8)
    monkeypatch.setattr(module, "graphs_on", lambda device, batch, random: graphs)
    captured = autoattacked(net, images, y, advance=told.append, **settings)
    assert not any(of.graphs for of in graphs.captured.values())
    assert len(pretended) <= 8 and torch.equal(broken_by(captured), broken_by(direct))
    torch.testing.assert_close(captured.x_adv, direct.x_adv, rtol=0, atol=1e-9)
    assert sum(told) == pytest.approx(20) and min(told) >= 0 and len(told) > 100
