"""A process alone: what would talk to others gives back what it was given."""

import torch

from fastarat.common.distributed import (
    World,
    average_in_place,
    barrier,
    decided,
    join_world,
    largest,
    leave_world,
    mean_over_processes,
    sum_over_processes,
)
from fastarat.common.processes import is_first

ALONE = World(torch.device("cpu"))


def test_a_process_that_was_not_launched_is_alone_and_the_main_one(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    world = join_world("cpu")
    assert (world.rank, world.size, world.group, world.control) == (0, 1, None, None)
    assert world.is_main and is_first()
    leave_world(world)


def test_means_and_sums_over_one_process_are_the_values_themselves():
    tensors = [torch.rand(2, 3), torch.rand(())]
    assert all(a is b for a, b in zip(mean_over_processes(tensors, ALONE), tensors, strict=True))
    assert sum_over_processes(tensors[0], ALONE) is tensors[0]


def test_averaging_in_place_changes_nothing():
    tensor = torch.rand(3)
    before = tensor.clone()
    average_in_place(iter([tensor]), ALONE)
    assert torch.equal(tensor, before)


def test_what_is_decided_alone_is_our_own():
    assert largest((3, 0), ALONE) == (3, 0) and decided(lambda: "ours", ALONE) == "ours"
    barrier(ALONE)


def test_only_the_first_of_several_processes_prints(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "fastarat")
    monkeypatch.setenv("RANK", "1")
    assert not is_first()
