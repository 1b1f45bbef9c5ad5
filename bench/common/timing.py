"""Timing of variants against each other: in turns, from a cold cache, as quantiles.

On a GPU a run is the replay of a captured CUDA graph, so that what the host does between launches is not timed.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from fastarat.common.turns import take_turns
from fastarat.training.tuning.chunks import WARM_UP

Key = TypeVar("Key", bound=Hashable)
Call = Callable[[], object]

COPY_BYTES = {"cuda": 1 << 30, "cpu": 64 << 20}
"""read and written by the copy that bandwidths are compared with: far beyond any cache on a GPU"""


@dataclass(frozen=True)
class Timed:
    """What is timed at once: `num_calls` calls."""

    start: Call
    num_calls: int
    alive: Sequence[Call] = field(repr=False)
    """a graph does not keep the tensors it reads: these calls do"""


def prepare(build: Callable[[], Sequence[Call]], device: torch.device) -> Timed:
    """A run of all the calls that `build` gives, warmed up.

    On a GPU they are captured into one graph. `build` runs on the stream of the capture, since autograd runs a backward
    pass on the stream of its forward pass, which `build` may hold.
    """
    if device.type == "cpu":
        calls = build()
        _all(calls)
        return Timed(lambda: _all(calls), len(calls), calls)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        calls = build()
        for _ in range(WARM_UP):
            _all(calls)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        _all(calls)
    return Timed(graph.replay, len(calls), calls)


def measure(runs: Mapping[Key, Timed], repeats: int, device: torch.device) -> dict[Key, dict[str, float]]:
    """Time each run `repeats` times, in turns: `percentiles` of the milliseconds of one call."""
    start_once = _on_gpu(device) if device.type == "cuda" else _on_cpu
    times: dict[Key, list[Callable[[], float]]] = {key: [] for key in runs}
    for key in take_turns(list(runs), repeats):
        times[key].append(start_once(runs[key]))
    return {key: percentiles("ms", [time() / runs[key].num_calls for time in times[key]]) for key in runs}


def copy_bandwidth(device: torch.device, repeats: int) -> float:
    """Bytes a second (read and written) of a large copy: what a kernel that only moves memory can reach."""
    source = torch.ones(COPY_BYTES[device.type] // 8, device=device)
    target = torch.empty_like(source)
    run = prepare(lambda: [lambda: target.copy_(source)], device)
    milliseconds = measure({"copy": run}, repeats, device)["copy"]["ms_p50"]
    return COPY_BYTES[device.type] / milliseconds * 1000


def _all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _on_cpu(run: Timed) -> Callable[[], float]:
    """Time a run; the function that is returned gives the milliseconds."""
    start = time.perf_counter()
    run.start()
    milliseconds = (time.perf_counter() - start) * 1000
    return lambda: milliseconds


def _on_gpu(device: torch.device) -> Callable[[Timed], Callable[[], float]]:
    """As `_on_cpu`; nothing waits for the GPU before the milliseconds are asked for.

    Before each run a buffer of twice the L2 cache is read, not written, which would leave dirty lines whose writing
    back the run would pay for. The GPU reads while the host starts the run behind it.
    """
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.ones(2 * cache_bytes // 4, device=device)

    def start_once(run: Timed) -> Callable[[], float]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        buffer.sum()
        start.record()
        run.start()
        end.record()

        def milliseconds() -> float:
            end.synchronize()
            return start.elapsed_time(end)

        return milliseconds

    return start_once


def percentiles(unit: str, values: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile, as a row names them: `ms_p20` and so on."""
    found = torch.tensor(values, dtype=torch.float64)
    return {f"{unit}_p{percent}": float(found.quantile(percent / 100)) for percent in (20, 50, 80)}


def one_line(error: Exception) -> str:
    """What a row says of an error."""
    text = next(filter(None, map(str.strip, str(error).splitlines())), "")
    return text if text.startswith("WRONG") else ": ".join(filter(None, (type(error).__name__, text)))[:300]
