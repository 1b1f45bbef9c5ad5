"""CUDA's streams on a CPU, for tests of what is launched where: nothing runs beside anything else."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.step_parts import CPU


class Stream:
    """A stream that notes for which one it waited last."""

    def __init__(self, device: torch.device = CPU):
        self.device = device
        self.waited_for: Stream | None = None

    def wait_stream(self, other: Stream) -> None:
        assert other.device == self.device
        self.waited_for = other


def pretend_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.cuda have such streams, with a current one."""
    now = [Stream()]

    class On:
        def __init__(self, stream: Stream):
            self.stream = stream

        def __enter__(self) -> None:
            self.before, now[0] = now[0], self.stream

        def __exit__(self, *_: object) -> None:
            now[0] = self.before

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: now[0])
    monkeypatch.setattr(torch.cuda, "stream", On)
