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
    """Tells `advance` how far an evaluation is, as a number of images: that share of all which the work done is of the
    work done and left.

    Work is passes of images through the model. At first each image that is right is expected to survive all attacks; of
    one that breaks nothing is left. So the time that is left is never told too short because many break early.
    """

    def __init__(
        self, advance: Callable[[float], None], settings: EvaluationSettings, robust: Tensor, num_processes: int = 1
    ):
        """`robust`: which of all images the attacks will see, bool [N]. Of several processes each tells of its own
        batches as if all were as far."""
        self.advance, self.settings, self.num_processes = advance, settings, num_processes
        self.num_images, self.told = len(robust), 0.0
        self.done, self.left = 0.0, self.passes(*settings.names) * int(robust.sum())
        self._spend(0.0, is_done=True)

    def passes(self, *names: str) -> float:
        """Those of an image that survives these attacks."""
        return sum(ATTACKS[name].cost(self.settings).passes for name in names)

    def counted(self, logits_of: Logits, name: str, size: int) -> tuple[Logits, Callable[[int, float], None]]:
        """`logits_of` that tells of its passes in one batch of `size`; and what settles the batch's account, given how
        many broke and the passes that were to come for each when it began, those of this attack included."""
        cost, spent = ATTACKS[name].cost(self.settings), 0.0

        def tell(num_images: int) -> None:
            nonlocal spent
            work = min(cost.passes * num_images / cost.forwards, cost.passes * size - spent)
            spent += work
            self._spend(work, is_done=True)

        def settle(num_broken: int, to_come: float) -> None:
            # What was kept from before was done then; what broke on the way spared the rest.
            self._spend(cost.passes * size - spent, is_done=not spent)
            self._spend(num_broken * (to_come - cost.passes), is_done=False)

        return Counted(logits_of, tell), settle

    def _spend(self, work: float, *, is_done: bool) -> None:
        """Take work from what is left, done or spared, and tell."""
        work *= self.num_processes
        self.left = max(self.left - work, 0.0)
        self.done += work if is_done else 0.0
        share = self.done / (self.done + self.left) if self.left else 1.0
        amount = max(self.num_images * share - self.told, 0.0)
        self.told += amount
        self.advance(amount)


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
