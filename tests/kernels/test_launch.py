"""Kernels start where their tensors are, on inputs that they take."""

import pytest
import torch
from fastarat_kernels import aot
from fastarat_kernels.launch import UnsupportedInput, check_rows, launch, recording
from fastarat_kernels.registry import KERNELS


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(UnsupportedInput, match="lie on cpu, meta"):
        launch(None, (1,), torch.empty(1), torch.empty(1, device="meta"))


def test_a_recorded_launch_starts_nothing():
    with recording() as launches:
        launch(None, (2, 3), torch.empty(4, device="meta"), 7, num_warps=8, BLOCK=16)
    (only,) = launches
    assert (only.grid, only.arguments[1], only.constants, only.num_warps) == ((2, 3), 7, {"BLOCK": 16}, 8)


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.float64), "float64"),
        (torch.zeros(2, 3, 4), "shape"),
        (torch.zeros(2, 3, 4, 4), "channels_last"),
        (torch.zeros(3, 2).t(), "strides"),
        (torch.zeros(0, 3), "empty"),
    ],
)
def test_what_a_kernel_does_not_take_is_refused_with_what_it_takes(x, word):
    with pytest.raises(UnsupportedInput, match=word):
        check_rows(x)


@pytest.mark.parametrize("name", KERNELS)
def test_every_configuration_starts_a_kernel(name):
    for label, start in aot.configurations(name):
        with recording() as launches:
            start()
        # Only a batch-norm is several kernels: statistics, their sum, and what they are for.
        assert len(launches) == 1 or (launches and name == "dual_batch_norm"), label
