"""What the benchmarks' command lines have in common."""

import pytest
import torch

from bench.common import command
from fastarat.common.errors import UserError


def device_of(*given: str) -> str:
    parser = command.Parser("bench", None)
    command.flags(parser, "device")
    return command.parsed(parser, [*given], "times the CPU").device


def test_a_gpu_that_torch_cannot_use_is_refused_and_never_timed_as_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of() == device_of("--device", "cpu") == "cpu"
    monkeypatch.setattr(command, "why_no_gpu", lambda: "NVIDIA driver 535: install a newer driver")
    for given in ((), ("--device", "cuda")):
        with pytest.raises(UserError, match="driver 535: install a newer driver, or give --device cpu, which times"):
            device_of(*given)
    assert device_of("--device", "cpu") == "cpu"
