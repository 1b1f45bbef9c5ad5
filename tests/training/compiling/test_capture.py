"""What stands round a captured graph (warm-up, restoring, copies, controls), with CUDA's part pretended."""

import gc
from contextlib import contextmanager

import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON

from fastarat.common.errors import WorkError
from fastarat.training.compiling.captured import CapturedStep, state_tensors
from tests.helpers.captured import batch, built, pretended_capture, set_controls, taken
from tests.helpers.step_parts import nets_of_one_block
from tests.helpers.streams import pretend_streams


@pytest.fixture(autouse=True, scope="module")
def small_nets():
    with nets_of_one_block():
        yield


@pytest.mark.parametrize(("precision", "kernels"), [("fp32", TRITON), ("bf16", PYTORCH), ("fp16", PYTORCH)])
def test_a_captured_run_keeps_every_bit_of_the_eager_run(kernels, precision, monkeypatch):
    eager = taken([8] * 3, *built("eager", kernels, precision))
    step, parts, controls = built("eager", kernels, precision)
    captured = CapturedStep(parts, step)
    losses = []
    with pretended_capture(monkeypatch, captured):
        for i in range(3):
            set_controls(i, parts, controls)
            losses.append(captured(batch(i, parts, 8))["loss"].clone())
    assert torch.equal(torch.stack(losses), eager[0])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state_tensors(parts), eager[1], strict=True))


def test_no_graph_of_autograd_lives_on_from_warm_up_to_capture(monkeypatch):
    """One would keep the parameters' nodes, and with them the stream that they accumulate on."""
    step, parts, _ = built("eager")
    captured = CapturedStep(parts, step)
    met_again = []

    def marking(given):
        node = parts.parameters[0].view_as(parts.parameters[0]).grad_fn.next_functions[0][0]
        met_again.append("marked" in node.metadata)
        node.metadata["marked"] = True
        return step(given)

    captured.step = marking
    with pretended_capture(monkeypatch, captured):
        captured(batch(0, parts))
    assert not any(met_again[:3])


def test_what_fails_in_a_capture_is_said_and_not_what_its_end_says_and_nothing_is_collected_in_it(monkeypatch):
    step, parts, _ = built("eager")
    captured, collects = CapturedStep(parts, step), []

    def fails_when_captured(given):
        collects.append(gc.isenabled())
        if len(collects) > 3:
            raise RuntimeError("cudaMalloc is not allowed")
        return step(given)

    captured.step = fails_when_captured
    with pretended_capture(monkeypatch, captured):
        inner = torch.cuda.graph

        @contextmanager
        def ending_badly(*args, **options):
            try:
                with inner(*args, **options):
                    yield
            except RuntimeError:
                raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904

        monkeypatch.setattr(torch.cuda, "graph", ending_badly)
        with pytest.raises(WorkError, match="cudaMalloc is not allowed"):
            captured(batch(0, parts))
    assert collects == [True, True, True, False] and gc.isenabled()


def test_a_capture_that_fails_names_the_way_round_it(monkeypatch):
    step, parts, _ = built("eager")
    captured = CapturedStep(parts, step)
    calls = []

    def fails_when_captured(given):
        calls.append(given)
        if len(calls) > 3:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return step(given)

    captured.step = fails_when_captured
    with pretended_capture(monkeypatch, captured), pytest.raises(WorkError, match=r"capturing.*--compile compile") as e:
        captured(batch(0, parts))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("good_calls", [0, 3], ids=["the warm-up fails", "the capture fails"])
def test_what_fails_leaves_the_stream_to_whoever_goes_on_when_all_that_it_started_is_done(monkeypatch, good_calls):
    """Who falls back puts the state back, which a step that has failed may still be writing."""
    step, parts, _ = built("eager")
    captured, calls, warmed_on = CapturedStep(parts, step), [], []

    def fails(given):
        calls.append(given)
        if len(calls) > good_calls:
            raise RuntimeError("operation not permitted when stream is capturing")
        warmed_on.append(torch.cuda.current_stream())
        return step(given)

    @contextmanager
    def staying(*_, **__):
        torch.cuda.stream(torch.cuda.Stream()).__enter__()  # torch leaves it only where the capture's end succeeds
        yield

    captured.step = fails
    pretend_streams(monkeypatch)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", staying)
    here = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="stream is capturing"):
        captured(batch(0, parts))
    assert torch.cuda.current_stream() is here
    side = here.waited_for  # type: ignore[attr-defined]
    assert side is not None and side.waited_for is here and set(warmed_on) <= {side}
