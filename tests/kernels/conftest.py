"""Kernels run in Triton's interpreter, or compiled where there is a GPU: then these are GPU tests."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    if torch.cuda.is_available():
        for item in here:
            item.add_marker(pytest.mark.gpu)
            if "(simulated)" in torch.cuda.get_device_name():
                item.add_marker(pytest.mark.skip(reason="Triton's kernels compute nothing on the simulated GPU"))
    elif os.environ.get("TRITON_INTERPRET") and _interpreter_breaks():
        for item in here:
            item.add_marker(pytest.mark.skip(reason="the interpreter of triton 3.6 needs numpy below 2.4"))


def _interpreter_breaks() -> bool:
    def parts(name: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version(name).split(".")[:2])

    return parts("triton") < (3, 7) and parts("numpy") >= (2, 4)
