"""A process alone: what would talk to others gives back what it was given."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import local
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastarat.common import distributed, processes
from fastarat.common.distributed import (
    LONGEST_STEP,
    LONGEST_WAIT,
    World,
    average_in_place,
    barrier,
    decided,
    join_world,
    largest,
    leave_world,
    mean_over_processes,
    said_of_others,
    sum_over_processes,
    with_short_waits,
)
from fastarat.common.errors import UserError
from fastarat.common.processes import is_first
from tests.helpers.groups import HOW

CPU = torch.device("cpu")
ALONE = World(CPU)


def test_a_process_that_was_not_launched_is_alone_and_the_main_one(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    world = join_world("cpu")
    assert (world.rank, world.size, world.group, world.control) == (0, 1, None, None)
    assert world.is_main and is_first()
    leave_world(world)


def test_a_task_that_sees_its_own_gpu_alone_takes_it_and_two_on_one_gpu_are_refused(monkeypatch):
    """The second task of a machine, as srun --gpus-per-task=1 starts it."""

    def refuse(backend: str, device_id: torch.device, **given: Any) -> None:
        taken.append(device_id)
        raise RuntimeError("ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 3000")

    taken: list[torch.device] = []
    for name, value in {
        "TORCHELASTIC_RUN_ID": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", refuse)
    with pytest.raises(UserError, match="two processes of this machine have the same GPU"):
        join_world("cuda")
    assert taken == [torch.device("cuda", 0)] * 2


def test_what_torchrun_starts_again_does_not_meet_those_that_are_gone(monkeypatch):
    """Three starts in one store, of two, three and two processes."""
    store = dist.HashStore()
    here = local()
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(store, here.rank, here.size)]))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.delenv(processes.LAUNCHER, raising=False)

    def meet(rank, size):
        here.rank, here.size = rank, size
        found = distributed._meeting_point()
        found[0].set(f"address of {rank}", "here")
        return found

    for size in (2, 3, 2):
        with ThreadPoolExecutor(size) as threads:
            met = list(threads.map(partial(meet, size=size), range(size)))
        assert [found[1:] for found in met] == [(rank, size) for rank in range(size)]
        for found, _, _ in met:  # all in one place, where nobody was before
            there = [found.check([f"address of {rank}"]) for rank in range(3)]
            assert there == [rank < size for rank in range(3)]


def test_those_that_only_their_machine_starts_again_are_met_too():
    """The first process still waits for one that never came, and two others have heard of it."""
    store = dist.HashStore()
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(distributed._name_of_start, store, 0, 4)
        heard = [threads.submit(distributed._name_of_start, store, rank, 4).result() for rank in (1, 2)]
        assert not first.done()
        again = [threads.submit(distributed._name_of_start, store, rank, 4) for rank in (2, 3)]
        assert {first.result(), *heard, *(process.result() for process in again)} == {first.result()}


def test_the_first_process_does_not_wait_for_ever(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "_LONGEST_MEETING_S", 0.01)
    with pytest.raises(RuntimeError, match="not all processes have come"):
        distributed._name_of_start(store, 0, 2)


def test_means_and_sums_over_one_process_are_the_values_themselves():
    tensors = [torch.rand(2, 3), torch.rand(())]
    assert all(a is b for a, b in zip(mean_over_processes(tensors, ALONE), tensors, strict=True))
    assert sum_over_processes(tensors[0], ALONE) is tensors[0]


@pytest.mark.parametrize(("device", "op", "mean"), [("cuda", "avg", 6.0), ("cpu", "sum", 3.0)])
def test_nccl_takes_the_mean_itself_and_of_gloo_s_sum_we_do(monkeypatch, device, op, mean):
    def all_reduce(flat, op, group):
        asked.append((op, group))
        return flat * 2

    asked: list[object] = []
    monkeypatch.setattr(torch.ops._c10d_functional, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.ops._c10d_functional, "wait_tensor", lambda values: values)
    group: Any = SimpleNamespace(group_name="all")
    tensors = [torch.full((2, 1), 3.0), torch.full((3,), 3.0)]
    means = mean_over_processes(tensors, World(torch.device(device), 0, 2, group))
    assert asked == [(op, "all")] and [each.flatten().tolist() for each in means] == [[mean] * 2, [mean] * 3]


def test_averaging_in_place_changes_nothing():
    tensor = torch.rand(3)
    before = tensor.clone()
    average_in_place(iter([tensor]), ALONE)
    assert torch.equal(tensor, before)


def test_what_is_decided_alone_is_our_own():
    assert largest((3, 0), ALONE) == (3, 0) and decided(lambda: "ours", ALONE) == "ours"
    barrier(ALONE)


def test_processes_wait_a_day_for_the_data_then_for_each_other_an_hour_and_minutes_in_a_step(monkeypatch):
    names = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    names["MASTER_ADDR"] = "127.0.0.1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        names["MASTER_PORT"] = str(free.getsockname()[1])
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    world = join_world("cpu")
    try:
        shorter = with_short_waits(world)
        assert [longest_wait(each.control) for each in (world, shorter)] == [timedelta(days=1), LONGEST_WAIT]
        assert longest_wait(world.group) == LONGEST_STEP
        assert shorter.group is world.group and decided(lambda: "ours", shorter) == "ours"
    finally:
        leave_world(world)
    assert with_short_waits(ALONE) is ALONE


def one_of_two(rank: int, folder: Path) -> None:
    """The first process comes to two meetings, the second to one alone; the first writes down what it is told."""
    store = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    world = World(CPU, rank, 2, dist.group.WORLD, dist.group.WORLD)
    assert largest((rank, 5 - rank), world, timedelta(seconds=30)) == (1, 5)
    if rank == 0:
        with pytest.raises(RuntimeError) as error:
            largest((0,), world, timedelta(seconds=1))
        (folder / "said").write_text(said_of_others(str(error.value), world))
    while not (folder / "said").exists():
        time.sleep(0.1)
    os._exit(0)


@pytest.mark.timeout(90)  # the group would wait for two minutes
def test_a_meeting_to_which_another_process_does_not_come_ends_in_its_own_time(tmp_path):
    torch.multiprocessing.start_processes(one_of_two, (tmp_path,), nprocs=2, start_method=HOW)
    assert (tmp_path / "said").read_text().startswith("another process hangs")


def longest_wait(group: Any) -> timedelta:
    return group._get_backend(torch.device("cpu")).options._timeout


def test_only_the_first_of_several_processes_prints(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "fastarat")
    monkeypatch.setenv("RANK", "1")
    assert not is_first()


def test_a_single_process_blames_no_other():
    assert said_of_others("the compiler timed out", ALONE) == ""
