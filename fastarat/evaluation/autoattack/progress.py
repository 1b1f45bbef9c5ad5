"""How much work an AutoAttack evaluation is, how much of it is done, and whether there is time for more."""

from collections.abc import Callable
from time import perf_counter

from torch import Tensor

from fastarat.attacks.cuda_graphs import Counted
from fastarat.attacks.pgd import Logits
from fastarat.attacks.registry import ATTACKS
from fastarat.config.evaluation import STANDARD, EvaluationSettings

PASSES = {name: ATTACKS[name].cost(EvaluationSettings()).passes for name in STANDARD}
"""model passes of an image that survives each of the standard's attacks"""


class Progress:
    """Tells `advance` of work as a number of images: one that breaks is done at once, others by passes."""

    def __init__(
        self, advance: Callable[[float], None], settings: EvaluationSettings, robust: Tensor, num_processes: int = 1
    ):
        """`robust`: which of all images the attacks will see, bool [N]. Of several processes each tells of its own
        batches as if all were as far."""
        self.advance, self.told, self.settings = advance, 0.0, settings
        self.unit = sum(ATTACKS[name].cost(settings).passes for name in settings.names)
        self.num_processes = 1
        self.tell(len(robust) - (int(robust.sum()) if settings.names else 0))
        self.num_processes = num_processes

    def tell(self, amount: float) -> None:
        """Say that work worth `amount` images more is done."""
        self.told += amount
        self.advance(amount * self.num_processes)

    def share(self, *names: str) -> float:
        """The part of an image's work that these attacks are."""
        return sum(ATTACKS[name].cost(self.settings).passes for name in names) / self.unit

    def counted(self, logits_of: Logits, name: str, size: int) -> tuple[Logits, Callable[[int, float], None]]:
        """`logits_of` that tells of its passes in one batch of `size`; and what settles the batch's account,
        given how many broke and what part of their work was still to come when it began."""
        share, begun, all_forwards = self.share(name), self.told, ATTACKS[name].cost(self.settings).forwards

        def tell(num_images: int) -> None:
            self.tell(max(min(share * num_images / all_forwards, begun + share * size - self.told), 0))

        def settle(num_broken: int, to_come: float) -> None:
            self.tell(begun + share * size + num_broken * (to_come - share) - self.told)

        return Counted(logits_of, tell), settle


class Budget:
    """A time limit in seconds that starts now; None: unlimited."""

    def __init__(self, seconds: float | None):
        self.seconds, self.begun, self.per_pass = seconds, perf_counter(), 0.0

    def allows(self, work: float) -> bool:
        """Whether a batch of `work` passes is expected to end in time; the first is done in any case, so that
        every call comes further."""
        if self.seconds is None or not self.per_pass:
            return True
        return perf_counter() - self.begun + work * self.per_pass <= self.seconds

    def learn(self, work: float, seconds: float) -> None:
        """Note how long a batch of `work` passes took. The slowest counts: others ended early, with nothing left."""
        self.per_pass = max(self.per_pass, seconds / work)
