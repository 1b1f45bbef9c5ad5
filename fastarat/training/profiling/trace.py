"""What a recorded trace says: which part of the step kept the device busy for how long, and how long nothing did."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fastarat.training.profiling.parts import REST, Part, Shape, Shapes, part_of_kernel

STEP = "training step"
"""The range round each recorded step: on a CPU what runs outside of it loads the batch."""
GAPS = "gaps"
_ON_THE_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
Event = dict[str, Any]


class Activity(NamedTuple):
    """Something that kept the device busy, in microseconds. `part` None: not recognised."""

    part: Part | None
    name: str
    start: float
    end: float


class Times(NamedTuple):
    """Milliseconds: by part and, under `GAPS`, where the device had nothing to do; and of names not recognised."""

    parts: dict[str, float]
    unknown: dict[str, float]
    activities: int


def times_of(activities: Iterable[Activity], wall_ms: float) -> Times:
    """How `wall_ms` divide. Of activities at the same time the earlier counts, so that nothing counts twice."""
    parts: defaultdict[str, float] = defaultdict(float)
    unknown: defaultdict[str, float] = defaultdict(float)
    busy_until, number = float("-inf"), 0
    for part, name, start, end in sorted(activities, key=lambda activity: activity.start):
        number += 1
        own = max(0.0, end - max(start, busy_until)) / 1e3
        busy_until = max(busy_until, end)
        parts[part or REST] += own
        if part is None:
            unknown[name] += own
    parts[GAPS] = max(0.0, wall_ms - sum(parts.values()))
    longest_first = sorted(unknown.items(), key=lambda item: -item[1])
    return Times(dict(parts), dict(longest_first), number)


def activities(events: list[Event], known: Shapes, gpu: bool) -> list[Activity]:
    """What ran on the device: the kernels of a GPU, or a CPU's outermost operations.

    `events`: of a Chrome trace by torch.profiler, recorded with shapes.
    """
    events = [event for event in events if event.get("ph") == "X"]
    if gpu:
        return _on_a_gpu(events, known)
    steps = [_span(event) for event in events if event["name"] == STEP]

    def part_of(event: Event) -> Part | None:
        start, _ = _span(event)
        loads = not any(first <= start < last for first, last in steps)
        return _part_of_operation(event, known) if not loads else "augmentation"

    return [Activity(part_of(event), event["name"], *_span(event)) for event in _outermost(events)]


def _on_a_gpu(events: list[Event], known: Shapes) -> list[Activity]:
    """Kernels by their names; one whose name says nothing by the operation that started it, which a captured graph
    does not have."""
    operations = {e.get("args", {}).get("External id"): e for e in events if e.get("cat") == "cpu_op"}

    def part_of(event: Event) -> Part | None:
        if event["cat"] != "kernel":
            return REST
        starter = operations.get(event.get("args", {}).get("External id"))
        return part_of_kernel(event["name"]) or (_part_of_operation(starter, known) if starter else None)

    found = [event for event in events if event.get("cat") in _ON_THE_DEVICE]
    return [Activity(part_of(event), event["name"], *_span(event)) for event in found]


def _outermost(events: list[Event]) -> Iterator[Event]:
    """Operations of a CPU that are part of no other one. What only wraps them is not counted: it computes nothing."""
    end = float("-inf")
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event.get("cat") == "cpu_op" and _computes(event["name"]) and event["ts"] >= end:
            end = _span(event)[1]
            yield event


def _computes(name: str) -> bool:
    return "_cpp_fused_" in name or ("::" in name and not name.startswith("autograd::"))


def _part_of_operation(event: Event, known: Shapes) -> Part | None:
    space, _, name = event["name"].rpartition("::")
    if not space:
        return part_of_kernel(name)
    return known.part_of(name, _shapes(event.get("args", {}).get("Input Dims", [])))


def _shapes(dims: list[Any]) -> Iterator[Shape]:
    """The shapes in `Input Dims`, where a list of tensors is a list of shapes."""
    for entry in dims:
        if entry and isinstance(entry[0], list):
            yield from _shapes(entry)
        else:
            yield tuple(entry)


def _span(event: Event) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]
