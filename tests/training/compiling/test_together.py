"""Of several processes the first one compiles a graph, and the others wait for its code."""

import fcntl
import threading
from typing import Any

import pytest
import torch

from fastarat.training.compiling import together


def graph_of(function: Any) -> torch.fx.GraphModule:
    return torch.fx.symbolic_trace(function)


def compiled_at_once(monkeypatch, *graphs: torch.fx.GraphModule, waits: bool) -> list[str]:
    """What happens where each of two compiles its graph, the second one while the first is at it: until the second
    waits for it, if it `waits`, else until it is done."""
    said, second_came, flock = [], threading.Event(), fcntl.flock

    def told(file: Any, flags: int) -> None:
        if flags & fcntl.LOCK_SH:
            second_came.set()
        flock(file, flags)

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        said.append("begins")
        if len(said) == 1:
            second.start()
            assert second_came.wait(60)
        elif not waits:
            second_came.set()
        said.append("ends")
        return graph.forward

    monkeypatch.setattr(fcntl, "flock", told)
    compiler = together.one_first(compile_graph)
    second = threading.Thread(target=compiler, args=(graphs[1], []))
    compiler(graphs[0], [])
    second.join()
    return said


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_the_second_compiles_when_the_first_has(monkeypatch, folder):
    same = graph_of(lambda x: x + 1)
    assert compiled_at_once(monkeypatch, same, graph_of(lambda x: x + 1), waits=True) == ["begins", "ends"] * 2
    assert len(list((folder / "locks").iterdir())) == 1


def test_another_graph_waits_for_nobody(monkeypatch):
    graphs = graph_of(lambda x: x + 1), graph_of(lambda x: x + 2)
    assert compiled_at_once(monkeypatch, *graphs, waits=False) == ["begins", "begins", "ends", "ends"]


def test_a_compiler_that_fails_lets_the_next_one_in_and_a_disk_without_locks_all(monkeypatch, folder):
    def fails(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise RuntimeError("no such instruction")

    graph = graph_of(lambda x: x + 1)
    with pytest.raises(RuntimeError, match="no such instruction"):
        together.one_first(fails)(graph, [])
    compiler = together.one_first(lambda graph, inputs: graph.forward)
    assert compiler(graph, [])(1) == 2

    def without(file: Any, flags: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without)
    assert compiler(graph, [])(1) == 2


def test_nobody_waits_for_ever(monkeypatch, folder, capsys):
    monkeypatch.setattr(together, "LONGEST_WAIT_S", 0.0)
    graph = graph_of(lambda x: x + 1)
    inner = together.one_first(lambda graph, inputs: graph.forward)
    assert together.one_first(lambda graph, inputs: inner(graph, inputs))(graph, [])(1) == 2
    assert "the step is compiled here too: another process has been at it" in capsys.readouterr().err
