"""Ranks of srun and mpirun in the words of torch's launcher."""

import os
import subprocess
import sys

import pytest

from fastarat.common.errors import UserError
from fastarat.common.network import interface_of, own_address
from fastarat.common.ranks import SIGN, expanded_counts, first_host, found_ranks, gpu_of

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
INTEL = {"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "3"}
BY_HAND = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "head"}


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
        {"RANK": "1"},
        {"WORLD_SIZE": "4", "MASTER_ADDR": "head"},
        BY_HAND | {"RANK": "0", "WORLD_SIZE": "1"},
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
    assert numbers(found_ranks(INTEL)) == [2, 3, 2, 3]
    with pytest.raises(UserError, match="does not say MPI_LOCALRANKID: start it with torchrun or srun"):
        found_ranks({"PMI_RANK": "2", "PMI_SIZE": "3"})


def test_mpirun_s_numbers_count_where_srun_started_its_daemons():
    daemon = STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
    for mpi, expected in ((OPEN_MPI, [1, 4, 1, 4]), (INTEL, [2, 3, 2, 3])):
        assert numbers(found_ranks(daemon | mpi)) == expected
    # srun --mpi=pmi2 speaks it too, and does not say who is on this machine.
    assert numbers(found_ranks(STEP | {"PMI_RANK": "3", "PMI_SIZE": "5"})) == [3, 5, 1, 2]


PRINT_PORT = f"""
import os
from fastarat.common.ranks import found_ranks
print(os.getppid(), found_ranks({{**os.environ, **{OPEN_MPI}}})["MASTER_PORT"])
"""


def test_each_job_of_mpirun_on_a_machine_meets_on_its_own_port_also_from_a_script():
    def said(*within: str, **variables: str) -> list[int]:
        command = [*within, sys.executable, "-c", PRINT_PORT]
        return [int(word) for word in subprocess.check_output(command, env={**os.environ, **variables}).split()]

    expected = 30_000 + os.getpid() % 2_768
    assert said() == [os.getpid(), expected] and expected < 32_768
    parent, port = said("sh", "-c", '"$@"; exit $?', "script", **OPEN_MPI)
    assert parent != os.getpid() and port == expected
    assert int(found_ranks(OPEN_MPI)["MASTER_PORT"]) == 30_000 + os.getppid() % 2_768


def test_who_starts_processes_by_hand_says_the_rest_or_has_one_a_machine():
    """As Kubeflow's PyTorchJob does."""
    ranks = found_ranks(BY_HAND)
    assert numbers(ranks) == [3, 4, 0, 1] and (ranks["MASTER_ADDR"], ranks["MASTER_PORT"]) == ("head", "29500")
    whole = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "7"}
    ranks = found_ranks(BY_HAND | whole)
    assert numbers(ranks) == [3, 4, 1, 2] and ranks["MASTER_PORT"] == "7"
    assert numbers(found_ranks(BY_HAND | OPEN_MPI)) == [1, 4, 1, 4]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS is set and SLURM_STEP_TASKS_PER_NODE is not: set it"),
        ({"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS is 'x', not 1 or more: unset SLURM_STEP_NUM_TASKS, or"),
        (STEP | {"SLURM_NODEID": "3"}, "SLURM_NODEID is '3', not 0 to 2: unset SLURM_STEP_NUM_TASKS, or start"),
        (STEP | {"SLURM_PROCID": "5"}, "SLURM_PROCID is '5', not 0 to 4"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x"}, r"SLURM_STEP_TASKS_PER_NODE is '2\(x': unset SLURM"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "zwei"}, "OMPI_COMM_WORLD_SIZE is 'zwei', .* or start this with mpirun"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "4"}, "OMPI_COMM_WORLD_LOCAL_RANK is '4', not 0 to 3"),
        ({SIGN: "7"}, "TORCHELASTIC_RUN_ID is set and WORLD_SIZE is not: set it, unset TORCHELASTIC_RUN_ID, or start"),
        ({SIGN: "7", **BY_HAND, "WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not 1 or more: unset TORCHELASTIC_RUN_ID, or"),
        (BY_HAND | {"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not 1 or more: unset WORLD_SIZE, or start this with"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE is set and MASTER_ADDR is not: set it, unset WORLD_SIZE, or"),
        (BY_HAND | {"LOCAL_RANK": "1"}, "LOCAL_RANK is '1', not 0 to 0"),
        (BY_HAND | {"MASTER_PORT": "tcp"}, "MASTER_PORT is 'tcp', not 1 to 65535"),
        (BY_HAND | {"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '9+', not 1 or more"),
    ],
)
def test_variables_that_no_launcher_sets_are_named_with_the_fix(variables, said):
    with pytest.raises(UserError, match=said):
        found_ranks(variables)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("node7", "node7"),
        ("gpu[03-05,09],login1", "gpu03"),
        ("a-1,a-2", "a-1"),
        ("rack[2,4].local,x", "rack2.local"),
        ("10.0.0.[1-2]", "10.0.0.1"),
        ("rack[1-2]node[0-3]", "rack1node0"),
        ("rack[1,3]node[02,4].local,x[1-2]", "rack1node02.local"),
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


@pytest.mark.parametrize("text", ["", ",a", "gpu[", "gpu[x]"])
def test_what_names_no_machine_of_slurm_s_is_refused(text):
    with pytest.raises(UserError, match="names no machine: give MASTER_ADDR"):
        first_host(text)


def test_slurm_s_counts():
    assert expanded_counts("4") == [4] and expanded_counts("4(x2),3,1(x3)") == [4, 4, 3, 1, 1, 1]


def test_the_way_to_this_machine_is_its_loopback():
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo" and interface_of("192.0.2.1") is None  # an address for documents
