"""Which part of the work a process takes, by the launcher that started it; and that it then works alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.common import shares
from bench.common.rows import read_rows
from bench.common.shares import share_of
from fastarat.common.errors import UserError
from fastarat.common.processes import join_ranks, launched
from fastarat.common.ranks import MPI

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[1-2]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
BY_HAND = {name: value for name, value in TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"}
MPIRUN = dict(zip(MPI[0], ("5", "8", "1", "4"), strict=True)) | {"MASTER_ADDR": "gpu1"}


@pytest.fixture(autouse=True)
def environ(monkeypatch):
    """An environment of its own, in which no launcher has said anything."""
    names = {"CUDA_VISIBLE_DEVICES", *TORCHRUN, *SRUN, *MPIRUN}
    fresh = {name: value for name, value in os.environ.items() if name not in names}
    monkeypatch.setattr(os, "environ", fresh)
    return fresh


@pytest.mark.parametrize("said", [TORCHRUN, SRUN, MPIRUN, BY_HAND])
@pytest.mark.parametrize(("visible", "own"), [(None, "1"), ("4,6,7,2", "6"), ("GPU-5e", "GPU-5e")])
def test_a_launcher_gives_a_part_and_a_gpu_and_is_forgotten(environ, monkeypatch, said, visible, own):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(shares, "end_with_launcher", lambda: None)
    environ.update(said if visible is None else {**said, "CUDA_VISIBLE_DEVICES": visible})
    assert share_of(None) == (6, 8)
    assert environ["CUDA_VISIBLE_DEVICES"] == own and not launched()
    join_ranks()  # as a training of it does, and all that it starts
    assert not launched()


def test_where_there_is_no_launcher_and_no_gpu_all_is_left_as_it_is(environ):
    before = dict(environ)
    assert share_of(None) == (1, 1) and share_of((2, 3)) == (2, 3) and environ == before


@pytest.mark.parametrize(
    ("given", "visible", "said"),
    [
        ((1, 4), "0,1,2,3", "leave it out"),
        (None, "0,1", "4 processes on a machine with 2"),
        (None, "", "4 processes on a machine with 1"),
    ],
)
def test_two_shares_and_shared_gpus_are_refused(environ, monkeypatch, given, visible, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(shares, "end_with_launcher", lambda: None)
    environ.update(TORCHRUN, CUDA_VISIBLE_DEVICES=visible)
    with pytest.raises(UserError, match=said):
        share_of(given)


@pytest.mark.slow
def test_torchrun_shares_a_suite_of_which_each_training_is_whole(tmp_path):
    root, rows = Path(__file__).parents[3], tmp_path / "rows.jsonl"
    settings = ("--methods", "standard", "--seeds", "2", "--num-images", "40", "--num-autoattack", "0")
    files = ("--runs", tmp_path / "runs", "--rows", rows)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")])}
    subprocess.run([*torchrun, "-m", "bench.robustness", *settings, *files], env=variables, cwd=root, check=True)
    assert sorted(row["seed"] for row in read_rows(rows)) == [0, 1]
    assert all(row["config"]["procs"] == 0 for row in read_rows(rows))
