"""The standard AutoAttack (Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks"): APGD-CE, targeted APGD-DLR, targeted FAB and Square, one after the other.

Each attack sees only the images that are still robust, in the order of the data, packed anew into full batches, and
starts from the clean image. What an attack found counts once it is confirmed: the model is run on it again, and it
must lie in the ball and in [0, 1]. Robust accuracy is of all images: those misclassified as they are count as broken.

An image's random numbers hang on the seed and on its place among all images, so that its result depends on no other
image. The standard draws a batch's noise at once instead; results agree up to the noise of its own seeds.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from fastarat.attacks.apgd import apgd_ce, apgd_t
from fastarat.attacks.apgd_search import Search
from fastarat.attacks.cuda_graphs import directly, graphs_on
from fastarat.attacks.every_iterate import pgd_every_iterate
from fastarat.attacks.fab import fab_t
from fastarat.attacks.found import Found
from fastarat.attacks.pgd import Logits
from fastarat.attacks.square import square
from fastarat.common.errors import UserError
from fastarat.config.attack import AttackConfig, Norm
from fastarat.evaluation.autoattack.checks import NUM_TARGETS, STANDARD, check_logits, check_settings
from fastarat.evaluation.autoattack.progress import Budget, Progress, passes
from fastarat.evaluation.autoattack.state import BatchOutcome, State, Task, are_inside, nothing
from fastarat.evaluation.autoattack.warnings import probabilities, randomness, undefined_clean
from fastarat.evaluation.result import AutoAttackResult, result_of
from fastarat.models.predictions import are_right, are_undefined

# On a CPU tensors that fit into the caches, and whose memory the allocator keeps, save half of the time: a small
# residual net took 0.55 of the time an image, forward and backward, for 50 of CIFAR-10's images at once that it took
# for 250. 25 were as good, 8 were not. A large net is all but indifferent.
CPU_PIXELS = 64 * 3 * 32 * 32
CPU_FEWEST = 16

Engine = Callable[[Logits, str, Task, Tensor, Tensor, Tensor], tuple[Found, Tensor]]
"""How attacks are run: from the model, an attack's name, the task, images [B, C, H, W] in [0, 1], labels and rows
(int64 [B]) to what the attack found, and how many searches began with a gradient of zero, of how many (int64 [2])"""


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
    targets: int = NUM_TARGETS,
    steps: int = 20,
    restarts: int = 1,
    step: float | None = None,
    engine: Engine | None = None,
    searching: Logits | None = None,
    state: Path | None = None,
    budget: float | None = None,
    advance: Callable[[float], None] = lambda amount: None,
) -> AutoAttackResult:
    """Attack `images` [N, C, H, W], bytes or numbers in [0, 1], on the device where they are; `labels`: int64 [N].

    `logits_of` maps floats [B, C, H, W] in [0, 1] to logits [B, K] (`autoattack_checks.check_model` looks at a module
    first); of its gradients only the input's is asked for. float64 images stay so, all others are float32. `eps` is in
    units of [0, 1]. `attacks` are some of `ATTACKS`, and run in this order; none: clean accuracy alone. `targets` is
    how many wrong classes apgd-t and fab-t go for, 9 in the standard; `steps`, `restarts` and `step` (default eps / 4)
    are those of pgd and cw. `engine` runs the attacks (default `fast`). `advance` is told what is done, in images.

    `searching` maps like `logits_of`, but in another precision: the attacks then look at it, `logits_of` confirms what
    they find, and attacks anew what it does not confirm.

    `state` is a directory that keeps what is done, batch by batch: the same call goes on from there and ends in the
    same flags. After `budget` seconds no batch is begun, nor one that would probably end later; but one at least.
    Raises `UserError` for bad settings, images or logits, and for the state of another evaluation or one at work.
    """
    engine = engine or fast
    options = targets, steps, restarts, step, engine.__name__, searching is not None
    task = Task(images.detach(), labels.to(images.device), norm, eps, seed, batch, tuple(attacks), *options)
    check_settings(task)
    task, run = task._replace(labels=task.labels.long()), Runner(logits_of, searching, engine, Budget(budget))
    clean_logits = _clean(logits_of, task)
    random, softmax = randomness(logits_of, task, clean_logits), probabilities(task, clean_logits)
    first = [warning for warning in (random, softmax, undefined_clean(clean_logits)) if warning]
    with State(state, task) as saved:
        graphs = graphs_on(images.device, batch, bool(random))
        task = task._replace(clean_logits=saved.settle(clean_logits, bool(random)), graphs=graphs)
        robust = [are_right(task.clean_logits, task.labels).cpu()]
        progress, records, stopped = Progress(advance, task, int(robust[0].sum())), [], ""
        for name in attacks:
            own, stopped = _attack(run, name, task, robust[-1], saved, progress)
            if own:
                records.append(own)
                broken = torch.cat([record.broken for record in own])
                robust.append(robust[-1].index_fill(0, broken, False))
            if stopped:
                break
    return result_of(task, robust, records, first, stopped)


class Runner(NamedTuple):
    """With what, and how long, attacks are run."""

    logits_of: Logits
    searching: Logits | None
    engine: Engine
    budget: Budget


def _attack(
    run: Runner, name: str, task: Task, robust: Tensor, saved: State, progress: Progress
) -> tuple[list[BatchOutcome], str]:
    """One attack on the images `robust` (bool [N]), batch by batch, but for the batches that are saved.

    With where the budget ended it, or ''.
    """
    at, left, records = task.attacks.index(name), robust.nonzero().flatten(), []
    to_come, batches = progress.share(*task.attacks[at:]), left.split(task.batch) if len(left) else ()
    for number, rows in enumerate(batches):
        file = f"{at + 1}-{name}-{number:05d}.safetensors"
        counting, settle = progress.counted(run.searching or run.logits_of, name, len(rows))
        record = saved.record(file, rows)
        if record is None:
            work = len(rows) * passes(task, name)
            if not run.budget.allows(work):
                return records, f"{name} has done {number} of {len(batches)} batches"
            record = _batch(run, counting, name, task, rows)
            saved.save(file, record._asdict())
            run.budget.learn(work, float(record.seconds))
        settle(len(record.broken), to_come)
        records.append(record)
    return records or [nothing(task)], ""


def _batch(run: Runner, counting: Logits, name: str, task: Task, rows: Tensor) -> BatchOutcome:
    """One attack on the images `rows`, and the check of what it found, which `counting` does not tell of."""
    begun, at = perf_counter(), rows.to(task.images.device)
    x, y = task.pixels(at), task.labels[at]
    checked = _checked(run, counting, name, task, x, y, at)
    if run.searching is not None and checked.refused.any():
        again = checked.refused.nonzero().flatten()
        checked.write(again, _checked(run, run.logits_of, name, task, x[again], y[again], at[again]))
    flags = checked.broken, checked.refused, checked.undefined, ~(checked.broken | checked.attackable)
    broken, refused, undefined, not_attackable = (flag.cpu() for flag in flags)
    return BatchOutcome(
        rows=rows.clone(),
        broken=rows[broken],
        x_adv=checked.x_adv.detach().cpu()[broken].contiguous(),
        unconfirmed=rows[refused],
        undefined=rows[undefined],
        not_attackable=rows[not_attackable],
        zero_gradients=checked.searches.cpu(),
        seconds=torch.tensor(perf_counter() - begun, dtype=torch.float64),
    )


class Checked(NamedTuple):
    """What an engine gave for B images, and what the model says of it; flags are bool [B]."""

    x_adv: Tensor
    broken: Tensor
    """found and confirmed"""
    refused: Tensor
    """found and not confirmed"""
    undefined: Tensor
    """broken, since the logits predict nothing"""
    attackable: Tensor
    searches: Tensor
    """as an `Engine` gives them"""

    def write(self, places: Tensor, anew: "Checked") -> None:
        """Put another look at the images `places` (int64) in the place of the first one."""
        anew = anew._replace(attackable=anew.attackable | self.attackable[places])
        for own, new in zip(self[:-1], anew[:-1], strict=True):
            own[places] = new
        self.searches.add_(anew.searches)


def _checked(run: Runner, searching: Logits, name: str, task: Task, x: Tensor, y: Tensor, rows: Tensor) -> Checked:
    """What the engine gives, and which of its finds are confirmed."""
    found, searches = run.engine(searching, name, task, x, y, rows)
    wrong, valid, undefined = confirmed(run.logits_of, x, found.images, y, task.norm, task.eps)
    broken = wrong & valid
    return Checked(
        found.images, broken, (found.broken | wrong) & ~broken, broken & undefined, found.attackable, searches
    )


def fast(logits_of: Logits, name: str, task: Task, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Found, Tensor]:
    """An `Engine`: fastarat's own attacks."""
    pieces = zip(*(tensor.split(at_once(x)) for tensor in (x, y, rows)), strict=True)
    found, searches = zip(*(_piece(logits_of, name, task, *piece) for piece in pieces), strict=True)
    return Found(*map(torch.cat, zip(*found, strict=True))), torch.stack(searches).sum(0)


def at_once(x: Tensor) -> int:
    """How many images like `x` [N, C, H, W] are attacked at once: all of them, but fewer on a CPU."""
    return max(CPU_PIXELS // x[:1].numel(), CPU_FEWEST) if x.device.type == "cpu" else len(x)


def _piece(logits_of: Logits, name: str, task: Task, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Found, Tensor]:
    searches = torch.zeros(2, dtype=torch.int64, device=x.device)

    def show(iteration: int, search: Search) -> None:
        if iteration == 0:
            searches[0] += (search.gradient == 0).flatten(1).all(1).sum()
            searches[1] += len(search.x)

    if name in ("pgd", "cw"):
        attack = pgd_settings(task, name)
        found = pgd_every_iterate(logits_of, x, y, rows, attack=attack, restarts=task.restarts, seed=task.seed)
        return found, searches
    model, mover = task.graphs.of(logits_of) if task.graphs else (logits_of, directly)
    settings = {"norm": task.norm, "eps": task.eps, "mover": mover}
    targeted = {"clean_logits": task.clean_logits[rows], "num_targets": task.targets}
    if name == "apgd-ce":
        found = apgd_ce(model, x, y, rows, seed=task.seed, show=show, **settings)
    elif name == "apgd-t":
        found = apgd_t(model, x, y, rows, seed=task.seed, show=show, **targeted, **settings)
    elif name == "fab-t":
        found = fab_t(model, x, y, **targeted, **settings)
    else:
        found = square(model, x, y, rows, seed=task.seed, **settings)
    return found, searches


def pgd_settings(task: Task, name: str) -> AttackConfig:
    """What `pgd` and `cw` (PGD on the margin) are in this task."""
    step_255 = 255 * (task.eps / 4 if task.step is None else task.step)
    objective = "margin" if name == "cw" else "cross-entropy"
    return AttackConfig(
        norm=task.norm, eps_255=255 * task.eps, step_255=step_255, steps=task.steps, objective=objective
    )


@torch.no_grad()
def confirmed(
    logits_of: Logits, x: Tensor, x_adv: Tensor, y: Tensor, norm: Norm, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which of `x_adv` are misclassified; which lie in [0, 1] and in the ball round `x`; of which the logits predict
    nothing: bool [B] each."""
    logits = logits_of(x_adv)
    return ~are_right(logits, y), are_inside(x, x_adv, norm, eps), are_undefined(logits)


@torch.no_grad()
def _clean(logits_of: Logits, task: Task) -> Tensor:
    """Logits [N, K] of the clean images. Raises `UserError` for what are no logits."""
    parts = []
    for first in range(0, len(task.labels), task.batch):
        x = task.pixels(slice(first, first + task.batch))
        parts.append(logits_of(x))
        check_logits(parts[-1], len(x), task)
    logits = torch.cat(parts)
    if are_undefined(logits).all():
        raise UserError("the model returns NaN or infinity for all clean images: check its weights and its precision")
    return logits
