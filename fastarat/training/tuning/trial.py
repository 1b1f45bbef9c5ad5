"""A candidate held against the definition and, if it is right, timed in turns with another form."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from fastarat.common.errors import WorkError, first_line
from fastarat.common.turns import ratio_of, ratio_text, take_turns
from fastarat.data.loading.loader import Batch
from fastarat.training.choices import Choices
from fastarat.training.compiling.compiled import MOST_UNROLLED, unrolled_size
from fastarat.training.tuning.candidates import described
from fastarat.training.tuning.chunks import WARM_UP, chunk, steps_for
from fastarat.training.tuning.gate import Right, compare, compare_images, precision_of
from fastarat.training.tuning.subject import FastaratSubject, StepSetting, give_back_memory

TURNS = 5
_TURNS_SECONDS = 60.0
"""no turn of a candidate begins later, but for the first two"""


@dataclass(frozen=True)
class Tried:
    """What came of a candidate."""

    form: Choices
    problem: str | None = None
    """why it is refused; None: it trains as the definition does"""
    ready_s: float = 0.0
    """seconds of its first step, once its code is kept"""
    images_per_s: float = 0.0
    ratio: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """times the speed of the form beside it, the plainest, turn by turn: least, median, most"""

    @property
    def ratio_text(self) -> str:
        """The ratio as tables show it."""
        return ratio_text(dict(zip(("low", "median", "high"), self.ratio, strict=True)))


def fastest(tried: Sequence[Tried], num_images: float, usable: Sequence[Tried]) -> Tried | None:
    """The usable form by which training on so many images ends first, its first step included; None if there is none.

    By the least of its turns: beside other work one of five may say 8 x, and the median is not safe from that either.
    """
    speed = tried[0].images_per_s

    def seconds(one: Tried) -> float:
        return one.ready_s + num_images / (speed * one.ratio[0])

    return min((one for one in usable if one.problem is None), key=seconds, default=None)


@dataclass
class Running:
    """A candidate that takes steps."""

    subject: FastaratSubject
    feed: Iterator[Batch]
    steps: int
    """of a chunk"""


class Trial:
    """What candidates are compared with: the results of the definition, and another form, which runs beside.

    Raises `WorkError` if that is refused.
    """

    def __init__(self, setting: StepSetting, right: Right, form: Choices):
        self.setting, self.right = setting, right
        try:
            self.base, ready = self._ready(form)
            rates = [self._rate(self.base) for _ in range(TURNS)]
        except _Refused as error:
            raise WorkError(f"the step that others are compared with ({described(form)}) {error}") from error
        self.plain = Tried(form, None, ready, median(rates))

    def close(self) -> None:
        """Let go of the form beside them."""
        self.base.subject.close()
        del self.base
        give_back_memory()

    def of(self, form: Choices) -> Tried:
        """Compare a candidate with the definition and time it; what fails or differs is refused, and said."""
        running, size = None, unrolled_size(self.base.subject.training.parts)
        if form.unroll and size > MOST_UNROLLED:
            return Tried(form, f"not tried: {size} convolutions in one graph; up to {MOST_UNROLLED} compile in time")
        try:
            running, ready = self._ready(form)
            pair, rates = [self.base, running], ([], [])
            for one in take_turns([0, 1], TURNS, time.monotonic() + _TURNS_SECONDS):
                rates[one].append(self._rate(pair[one]))
            if not running.subject.is_finite():
                raise _Refused("has weights that are not finite after the timed steps")
            ratio = ratio_of(rates[1], rates[0])
            return Tried(form, None, ready, median(rates[1]), (ratio["low"], ratio["median"], ratio["high"]))
        except _Refused as error:
            return Tried(form, str(error))
        except Exception as error:  # whatever a candidate dies of, the others go on
            return Tried(form, f"fails: {type(error).__name__}: {first_line(error)}")
        finally:
            if running:
                running.subject.close()
            del running
            give_back_memory()

    def _ready(self, form: Choices) -> tuple[Running, float]:
        """The form, right and warm, and the seconds of its first step; raises `_Refused`."""
        subject = FastaratSubject(self.setting, form)
        verdict = compare(subject, self.right, precision_of(form.dtype, form.device))
        subject.close()
        if problem := verdict.problem or compare_images(subject.batches(), self.right):
            first, *more = problem.split("; ")
            raise _Refused(f"differs from the definition: {first}{f' and {len(more)} more' * bool(more)}")
        # Once more, with what the compiler has kept of the first time: so will it be in the trainings to come.
        del subject
        give_back_memory()
        started = time.perf_counter()
        subject = FastaratSubject(self.setting, form)
        running = Running(subject, subject.batches(), 1)
        with subject.flags():
            float(subject.step(next(running.feed))["loss"])  # waits for the device
        ready = time.perf_counter() - started
        chunk(subject, running.feed, self.setting, WARM_UP)
        running.steps = steps_for(self.setting, self._rate(running))
        return running, ready

    def _rate(self, running: Running) -> float:
        """Images/s of a chunk."""
        return chunk(running.subject, running.feed, self.setting, running.steps)[1]


class _Refused(Exception):
    """Says what is wrong with a candidate."""
