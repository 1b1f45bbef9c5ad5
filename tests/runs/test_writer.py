"""What is written in the background: as it was, one after the other, and no error is lost."""

from threading import Event

import pytest
import torch

from fastarat.common.errors import WorkError
from fastarat.runs.writer import Writer


def test_a_state_is_written_as_it_was_and_the_end_waits_for_it():
    state = {"model": torch.nn.BatchNorm2d(2).state_dict(), "metrics": [{"epoch": 1}], "step": 3}
    written, may_write, writer = [], Event(), Writer()

    def save(found):
        assert may_write.wait(60)
        written.append(found)

    writer.write(save, state)
    state["model"]["weight"].zero_()
    state["metrics"].append({"epoch": 2})
    assert writer.is_writing and not written
    may_write.set()
    writer.close()
    assert written[0]["model"]["weight"].tolist() == [1, 1] and written[0]["metrics"] == [{"epoch": 1}]
    assert written[0]["model"]._metadata == state["model"]._metadata


@pytest.mark.parametrize("ask", ["wait", "write", "is_writing"])
def test_what_goes_wrong_is_raised_once_at_the_next_call(ask):
    def save(state):
        raise WorkError("cannot write step.pt")

    writer = Writer()
    writer.write(save, {})
    writer.close()
    with pytest.raises(WorkError, match=r"^cannot write step\.pt$"):
        writer.is_writing if ask == "is_writing" else getattr(writer, ask)(*(save, {}) if ask == "write" else ())
    assert not writer.is_writing
