"""The standard AutoAttack (Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks"): APGD-CE, targeted APGD-DLR, targeted FAB and Square, one after the other.

Each attack sees only the images that are still robust, in the order of the data, packed anew into full batches, and
starts from the clean image. What an attack found counts once it is confirmed: the model is run on it again, and it
must lie in the ball and in [0, 1]. Robust accuracy is of all images: those misclassified as they are count as broken.

An image's random numbers hang on the seed and on its place among all images, so that its result depends on no other
image. The standard draws a batch's noise at once instead; results agree up to the noise of its own seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from fastarat.attacks.apgd import apgd_ce, apgd_t
from fastarat.attacks.apgd_search import Search
from fastarat.attacks.autoattack_checks import STANDARD, TOLERANCE, check_logits, check_settings
from fastarat.attacks.autoattack_state import Record, State, Task, nothing
from fastarat.attacks.autoattack_warnings import afterthoughts, probabilities, randomness
from fastarat.attacks.fab import fab_t
from fastarat.attacks.pgd import Logits
from fastarat.attacks.projections import lengths
from fastarat.attacks.settings import Norm
from fastarat.attacks.square import square

# Of an image that survives: an attack's share of the passes through the model (a backward counted as a forward), and
# its forwards.
SHARES = {"apgd-ce": 204 / 9766, "apgd-t": 1829 / 9766, "fab-t": 2729 / 9766, "square": 5004 / 9766}
FORWARDS = {"apgd-ce": 101, "apgd-t": 909, "fab-t": 1800, "square": 5001}


@dataclass(frozen=True)
class AutoAttackResult:
    """What is left of N images. On the CPU; rows are places among all images."""

    robust_after: dict[str, Tensor]
    """bool [N] after `clean` and after each attack"""
    broken_by: Tensor
    """int64 [N]: -1 misclassified as it is, 0 robust, k by the k-th attack"""
    rows: Tensor
    """of the images that an attack broke, rising: int64 [M]"""
    x_adv: Tensor
    """their adversarial images [M, C, H, W]"""
    unconfirmed: dict[str, tuple[int, ...]]
    """rows of what each attack found and the check refused; they count as robust to it"""
    seconds: dict[str, float]
    """of each attack, over all sessions"""
    warnings: tuple[str, ...]
    """why the numbers may say too much; they are as they would be without"""

    @property
    def counts(self) -> dict[str, int]:
        """How many images are robust after `clean` and after each attack."""
        return {name: int(flags.sum()) for name, flags in self.robust_after.items()}

    @property
    def percent(self) -> float:
        """Robust accuracy over all images, 0 to 100."""
        return 100 * list(self.counts.values())[-1] / len(self.broken_by)


def autoattack(
    logits_of: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    seed: int = 0,
    batch: int = 250,
    attacks: Sequence[str] = STANDARD,
    state: Path | None = None,
    advance: Callable[[float], None] = lambda amount: None,
) -> AutoAttackResult:
    """Attack `images` [N, C, H, W], bytes or numbers in [0, 1], on the device where they are; `labels`: int64 [N].

    `logits_of` maps floats [B, C, H, W] in [0, 1] to logits [B, K] (`autoattack_checks.check_model` looks at a module
    first); of its gradients only the input's is asked for. float64 images stay so, all others are float32. `eps` is in
    units of [0, 1]. `attacks` are some of the standard's, and run in this order. `advance` is told what is done, in
    images.

    `state` is a directory that keeps what is done, batch by batch: the same call goes on from there and ends in the
    same flags. Raises `UserError` for bad settings, images or logits, and for the state of another evaluation.
    """
    check_settings(images, labels, norm, eps, batch, attacks)
    task = Task(images.detach(), labels.to(images.device, torch.int64), norm, eps, seed, batch, tuple(attacks))
    clean_logits = _clean(logits_of, task)
    random, softmax = randomness(logits_of, task, clean_logits), probabilities(task, clean_logits)
    saved = State(state, task)
    task = task._replace(clean_logits=saved.settle(clean_logits, bool(random)))
    robust = [(task.clean_logits.argmax(1) == task.labels).cpu()]
    progress, records = Progress(advance, task, int(robust[0].sum())), []
    for name in attacks:
        records.append(_attack(logits_of, name, task, robust[-1], saved, progress))
        broken = torch.cat([record.broken for record in records[-1]])
        robust.append(robust[-1].index_fill(0, broken, False))
    return _result(task, robust, records, [warning for warning in (random, softmax) if warning])


class Progress:
    """Tells `advance` of work as a number of images: one that breaks is done at once, others by passes."""

    def __init__(self, advance: Callable[[float], None], task: Task, num_left: int):
        self.advance, self.told, self.unit = advance, 0.0, sum(SHARES[name] for name in task.attacks)
        self.tell(len(task.labels) - num_left)

    def tell(self, amount: float) -> None:
        """So much more is done."""
        self.told += amount
        self.advance(amount)

    def counted(self, logits_of: Logits, name: str, size: int) -> tuple[Logits, Callable[[int, float], None]]:
        """`logits_of` that tells of its passes in one batch of `size`; and what settles the batch's account,
        given how many broke and what part of their work was still to come when it began."""
        share, begun = SHARES[name] / self.unit, self.told

        def counting(x: Tensor) -> Tensor:
            logits = logits_of(x)
            self.tell(max(min(share * len(x) / FORWARDS[name], begun + share * size - self.told), 0))
            return logits

        def settle(num_broken: int, to_come: float) -> None:
            self.tell(begun + share * size + num_broken * (to_come - share) - self.told)

        return counting, settle


def _attack(logits_of: Logits, name: str, task: Task, robust: Tensor, saved: State, progress: Progress) -> list[Record]:
    """One attack on the images `robust` (bool [N]), batch by batch, but for the batches that are saved."""
    at, left, records = task.attacks.index(name), robust.nonzero().flatten(), []
    to_come = sum(SHARES[later] for later in task.attacks[at:]) / progress.unit
    for number, rows in enumerate(left.split(task.batch) if len(left) else ()):
        file = f"{at + 1}-{name}-{number:05d}.safetensors"
        counting, settle = progress.counted(logits_of, name, len(rows))
        record = saved.record(file, rows)
        if record is None:
            record = _batch(logits_of, counting, name, task, rows)
            saved.save(file, record._asdict())
        settle(len(record.broken), to_come)
        records.append(record)
    return records or [nothing(task)]


def _batch(logits_of: Logits, counting: Logits, name: str, task: Task, rows: Tensor) -> Record:
    """One attack on the images `rows`, and the check of what it found, which `counting` does not tell of."""
    begun, at = perf_counter(), rows.to(task.images.device)
    x, y = task.pixels(at), task.labels[at]
    x_adv, found, zero_gradients = _found(counting, name, task, x, y, at)
    wrong, valid = confirmed(logits_of, x, x_adv, y, task.norm, task.eps)
    broken, refused = (wrong & valid).cpu(), ((found | wrong) & ~(wrong & valid)).cpu()
    kept = x_adv.detach().cpu()[broken].contiguous()
    return Record(
        rows=rows.clone(),
        broken=rows[broken],
        x_adv=kept,
        unconfirmed=rows[refused],
        zero_gradients=zero_gradients.cpu(),
        seconds=torch.tensor(perf_counter() - begun, dtype=torch.float64),
    )


def _found(logits_of: Logits, name: str, task: Task, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """The attack's images and what it holds for broken; and APGD's searches without a gradient, and all."""
    norm, eps, seed, searches = task.norm, task.eps, task.seed, torch.zeros(2, dtype=torch.int64, device=x.device)

    def show(iteration: int, search: Search) -> None:
        if iteration == 0:
            searches[0] += (search.gradient == 0).flatten(1).all(1).sum()
            searches[1] += len(search.x)

    if name == "apgd-ce":
        found = apgd_ce(logits_of, x, y, rows, norm=norm, eps=eps, seed=seed, show=show)
    elif name == "apgd-t":
        logits = task.clean_logits[rows]
        found = apgd_t(logits_of, x, y, rows, norm=norm, eps=eps, seed=seed, clean_logits=logits, show=show)
    elif name == "fab-t":
        found = fab_t(logits_of, x, y, norm=norm, eps=eps, clean_logits=task.clean_logits[rows])
    else:
        found = square(logits_of, x, y, rows, norm=norm, eps=eps, seed=seed)
    return *found, searches


@torch.no_grad()
def confirmed(logits_of: Logits, x: Tensor, x_adv: Tensor, y: Tensor, norm: Norm, eps: float) -> tuple[Tensor, Tensor]:
    """Which of `x_adv` are misclassified; which lie in [0, 1] and in the ball round `x`: both bool [B]."""
    inside = lengths(x_adv - x, norm).flatten() <= eps + TOLERANCE[norm]
    return logits_of(x_adv).argmax(1) != y, inside & ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)


def _result(task: Task, robust: list[Tensor], records: list[list[Record]], warnings: list[str]) -> AutoAttackResult:
    of = dict(zip(task.attacks, records, strict=True))
    broken_by = torch.where(robust[0], 0, -1)
    for number, own in enumerate(records, 1):
        broken_by[torch.cat([record.broken for record in own])] = number
    flat = [record for own in records for record in own]
    rows, order = torch.cat([record.broken for record in flat]).sort()
    unconfirmed = {name: torch.cat([record.unconfirmed for record in own]).tolist() for name, own in of.items()}
    return AutoAttackResult(
        robust_after=dict(zip(("clean", *task.attacks), robust, strict=True)),
        broken_by=broken_by,
        rows=rows,
        x_adv=torch.cat([record.x_adv for record in flat])[order],
        unconfirmed={name: tuple(rows) for name, rows in unconfirmed.items()},
        seconds={name: sum(float(record.seconds) for record in own) for name, own in of.items()},
        warnings=(*warnings, *afterthoughts(task, robust, of, unconfirmed)),
    )


@torch.no_grad()
def _clean(logits_of: Logits, task: Task) -> Tensor:
    """Logits [N, K] of the clean images. Raises `UserError` for what are no logits."""
    parts = []
    for first in range(0, len(task.labels), task.batch):
        x = task.pixels(slice(first, first + task.batch))
        parts.append(logits_of(x))
        check_logits(parts[-1], len(x), task)
    return torch.cat(parts)
