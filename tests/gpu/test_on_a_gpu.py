"""What only a CUDA device can show; `make gpu` runs these."""

import json
import socket

import pytest
import torch

from fastarat.__main__ import main
from fastarat.verification.golden_checks import verify_file
from tests.helpers.command_line import finish, start
from tests.helpers.simulated_gpu import IS_HERE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", ["arat_resnet18.npz", "arat_wrn16_2.npz"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_vectors_hold_on_the_gpu(golden, name, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    rows = list(verify_file(golden / name, dtype, torch.device("cuda")))
    assert [row for row in rows if not row.holds] == []


IN_FP16 = pytest.param(
    "fp16",
    marks=pytest.mark.skipif(IS_HERE, reason="simulated it takes half an hour: test_captured_step trains in fp16"),
)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", IN_FP16])
def test_the_digits_train_on_the_gpu_in_every_precision(tmp_path, dtype):
    pytest.importorskip("tyro", reason="the command line needs it")
    out = tmp_path / "run"
    code = main(["train", "digits-arat", "--device", "cuda", "--dtype", dtype, "--epochs", "15", "--out", str(out)])
    assert code == 0
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["evaluation"]["clean"] > 90
    assert last["evaluation"]["robust"] > 50


def test_a_process_of_a_launcher_trains_with_nccl_in_its_graph_and_ends(tmp_path):
    """Several GPUs are not needed for it: a world of one process has all that NCCL captures, and waits for."""
    pytest.importorskip("tyro", reason="the command line needs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"TORCHELASTIC_RUN_ID": "alone", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    out = tmp_path / "run"
    process = start("train", "digits-at", "--gpus", "1", "--epochs", "1", "--out", out, environment=world)
    result = finish(process, timeout=300)
    assert result.code == 0, result.err
    assert (out / "model.safetensors").exists()


def test_attack_noise_is_the_same_on_both_devices():
    from fastarat_kernels.philox import Stream, uniform

    rows = torch.arange(5, 9)
    on_cpu = uniform(3, Stream.ATTACK_START, 7, rows, (3, 4, 4))
    on_gpu = uniform(3, Stream.ATTACK_START, 7, rows.cuda(), (3, 4, 4))
    assert torch.equal(on_cpu, on_gpu.cpu())
