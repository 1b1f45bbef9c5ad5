"""What many ladders share is computed once; their commands print to what a test reads."""

import pytest

from bench.common import command
from bench.ladder import ladder
from bench.ladder import report as throughput_report
from fastarat.common import console
from fastarat.training.tuning import chunks
from fastarat.training.tuning.subject import StepSetting


@pytest.fixture(scope="module", autouse=True)
def small_ladders():
    """What many ladders share, a setting's cost and its definition's results, is computed once; chunks are short."""
    found = {}

    def once(real):
        def of_setting(setting: StepSetting, *rest):
            key = real.__name__, setting.config, len(setting.dataset.train.labels)
            if key not in found:
                found[key] = real(setting, *rest)
            return found[key]

        return of_setting

    with pytest.MonkeyPatch.context() as patched:
        for real in (ladder.cost_of, ladder.batches_of, ladder.definition):
            patched.setattr(ladder, real.__name__, once(real))
        patched.setattr(ladder, "give_back_memory", lambda: None)  # gives back a GPU's memory
        patched.setattr(chunks, "_CHUNK_SECONDS", 0.1)
        yield


@pytest.fixture
def terminal(monkeypatch, capsys):
    """What the command prints."""
    from rich.console import Console

    for name, stderr in (("stdout", False), ("stderr", True)):
        monkeypatch.setattr(console, name, Console(stderr=stderr, soft_wrap=True, highlight=False, width=250))
    for module in (command, throughput_report):
        monkeypatch.setattr(module, "stdout", console.stdout)
    return capsys
