"""One loader in a fresh process, checked or timed: what `bench.loaders` runs.

    python -m bench.loaders.in_a_process TASK CASE SECONDS

TASK: `check`, `speed` or `training`. CASE: JSON, see `LoaderCase`. The last line printed is the result as JSON.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any, NamedTuple

from bench.loaders.cases import LoaderCase
from bench.loaders.cpu_time import cpu_seconds
from bench.loaders.feeds import feed_of, forget

Result = dict[str, Any]


class Mark(NamedTuple):
    """A moment: seconds by the clock and of CPU time."""

    clock: float
    cpu: float

    @classmethod
    def now(cls) -> "Mark":
        """This moment. Reading the CPU time takes a millisecond or two."""
        return cls(time.perf_counter(), cpu_seconds())

    def since(self, num_images: int) -> Result:
        """What `num_images` images took since then."""
        now = Mark.now()
        return {
            "images": num_images,
            "images_per_s": num_images / (now.clock - self.clock),
            "cpu_s_per_1000": 1000 * (now.cpu - self.cpu) / num_images,
        }


def check(case: LoaderCase) -> Result:
    """How far the first batches are from PIL's, and whether that is too far."""
    from bench.loaders.check import differences

    try:
        found = differences(case)
    except ValueError as error:
        return {"problem": str(error), "differences": {}}
    return {"problem": found.problem, "differences": asdict(found)}


def speed(case: LoaderCase, seconds: float) -> Result:
    """The first epoch from a loader that is yet to be started, its files dropped from memory, and about `seconds` of
    whole epochs after it, one at least."""
    images = case.images()
    forget(images.paths)
    begin = Mark.now()
    with closing(feed_of(case, images)) as feed:
        batches = feed.epoch(1)
        count = len(next(batches))
        waited = time.perf_counter() - begin.clock
        first = begin.since(count + _count(batches))
        begin, number, count = Mark.now(), 1, 0
        while number == 1 or time.perf_counter() - begin.clock < seconds:
            number += 1
            count += _count(feed.epoch(number))
        return {"first": {**first, "first_batch_s": waited}, "steady": begin.since(count)}


def _count(batches: Iterator[Any]) -> int:
    return sum(len(batch) for batch in batches)


def main(task: str, case: LoaderCase, seconds: float) -> Result:
    """The result of a task."""
    if task == "training":
        from bench.loaders.training import training

        return training(case, seconds)
    return check(case) if task == "check" else speed(case, seconds)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], LoaderCase(**json.loads(sys.argv[2])), float(sys.argv[3]))))
