"""Ranks of srun and mpirun in the words of torch's launcher."""

import pytest

from fastarat.common.errors import UserError
from fastarat.common.network import interface_of, own_address
from fastarat.common.ranks import expanded_counts, first_host, found_ranks, gpu_of

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[08-09,11]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}


def numbers(ranks):
    return [int(ranks[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]


def test_a_task_of_srun_knows_its_place_and_where_the_first_one_is():
    ranks = found_ranks(STEP)
    assert numbers(ranks) == [3, 5, 1, 2] and ranks["MASTER_ADDR"] == "gpu08"
    assert ranks["MASTER_PORT"] != found_ranks(STEP | {"SLURM_STEP_ID": "3"})["MASTER_PORT"]
    assert numbers(found_ranks(STEP | {"SLURM_NODEID": "2", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"})) == [4, 5, 0, 1]
    assert found_ranks(STEP | {"MASTER_ADDR": "head", "MASTER_PORT": "9"}).items() >= {
        ("MASTER_ADDR", "head"),
        ("MASTER_PORT", "9"),
    }


@pytest.mark.parametrize(
    "alone",
    [
        {},
        # The script that sbatch starts has these, and is no task.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_process_that_is_alone_stays_alone(alone):
    assert found_ranks(alone) is None


def test_mpirun_on_one_machine_meets_there_and_on_several_where_it_is_told():
    ranks = found_ranks(OPEN_MPI)
    assert numbers(ranks) == [1, 4, 1, 4] and ranks["MASTER_ADDR"] == "127.0.0.1"
    several = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    with pytest.raises(UserError, match="give MASTER_ADDR"):
        found_ranks(several)
    assert found_ranks(several | {"MASTER_ADDR": "head"})["MASTER_ADDR"] == "head"
    intel = {"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "3"}
    assert numbers(found_ranks(intel)) == [2, 3, 2, 3]
    with pytest.raises(UserError, match="does not say MPI_LOCALRANKID: start it with torchrun or srun"):
        found_ranks({"PMI_RANK": "2", "PMI_SIZE": "3"})


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("node7", "node7"),
        ("gpu[03-05,09],login1", "gpu03"),
        ("a-1,a-2", "a-1"),
        ("rack[2,4].local,x", "rack2.local"),
        ("10.0.0.[1-2]", "10.0.0.1"),
    ],
)
def test_the_first_of_slurm_s_machines(text, host):
    assert first_host(text) == host


@pytest.mark.parametrize(
    ("num_visible", "own"),
    [
        (4, [0, 1, 2, 3]),  # each task sees all
        (1, [0, 0, 0, 0]),  # each sees its own alone: --gpus-per-task=1, and the binding of --gpu-bind
        (2, [0, 1, 0, 1]),  # each sees two of its own
    ],
)
def test_a_task_has_a_gpu_of_those_that_it_sees(num_visible, own):
    assert [gpu_of(local_rank, num_visible) for local_rank in range(4)] == own


def test_slurm_s_counts():
    assert expanded_counts("4") == [4] and expanded_counts("4(x2),3,1(x3)") == [4, 4, 3, 1, 1, 1]


def test_the_way_to_this_machine_is_its_loopback():
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo" and interface_of("192.0.2.1") is None  # an address for documents
