"""CUDA itself says that the loop never waits for the device between log lines."""

from dataclasses import replace

import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON

from fastarat.config.data import AugmentConfig
from fastarat.config.recipes import recipe
from fastarat.config.training import AveragingConfig
from fastarat.training.compiling.captured import CapturedStep
from fastarat.training.compiling.compiled import StepBySize
from tests.helpers.host_syncs import QuietLoop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def loop(mode: str, kernels, dtype: str, averaging: str) -> QuietLoop:
    """A loop of ten steps an epoch; its first epoch, in which things are compiled and captured, is behind it."""
    config = replace(
        recipe("digits-arat"),
        batch=32,
        num_train_images=320,
        augment=AugmentConfig(1, True),
        averaging=AveragingConfig(averaging, start_epoch=1, every_steps=4),  # type: ignore[arg-type]
    )
    config = replace(config, attack=replace(config.attack, steps=2))
    made = QuietLoop(config, mode, dtype, "cuda", kernels)  # type: ignore[arg-type]
    made.epochs(1)
    torch.cuda.synchronize()
    return made


@pytest.fixture
def waiting_is_an_error():
    """A switch that makes every wait for the device raise; off again after the test."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("averaging", ["none", "ema", "swa"])
@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_twenty_captured_steps_of_the_loop_never_wait(waiting_is_an_error, dtype, kernels, averaging):
    made = loop("graph", kernels, dtype, averaging)
    assert isinstance(made.step, StepBySize) and isinstance(made.step.step, CapturedStep)
    waiting_is_an_error()
    totals = made.epochs(2)
    torch.cuda.set_sync_debug_mode("default")
    assert made.training.step == 30 and totals.isfinite().all()


@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
def test_eager_steps_of_the_loop_never_wait(waiting_is_an_error, kernels):
    made = loop("eager", kernels, "bf16", "ema")
    waiting_is_an_error()
    made.epochs(1)
    torch.cuda.set_sync_debug_mode("default")
    assert made.training.step == 20


def test_a_wait_in_the_loop_is_found(waiting_is_an_error):
    made = loop("eager", PYTORCH, "fp32", "none")
    step = made.step

    def curious(batch):
        metrics = step(batch)
        metrics["loss"].item()
        return metrics

    made.step = curious
    waiting_is_an_error()
    with pytest.raises(RuntimeError, match="synchroniz"):
        made.epochs(1)
