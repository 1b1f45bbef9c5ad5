"""The standard AutoAttack (Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks"): APGD-CE, targeted APGD-DLR, targeted FAB and Square, one after the other.

Each attack sees only the images that are still robust, in the order of the data, packed anew into full batches, and
starts from the clean image. What an attack found counts once it is confirmed: the model is run on it again, and it
must lie in the ball and in [0, 1]. Robust accuracy is of all images: those misclassified as they are count as broken.

An image's random numbers depend on the seed and on its place among all images, so that its result depends on no other
image. The standard draws a batch's noise at once instead; results agree up to the noise of its own seeds.
"""

from functools import partial
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from fastarat.attacks.cuda_graphs import graphs_on
from fastarat.attacks.pgd import Logits
from fastarat.attacks.registry import ATTACKS
from fastarat.common.distributed import World, decided, divided
from fastarat.common.errors import UserError
from fastarat.config.attack import Norm
from fastarat.config.evaluation import EvaluationSettings
from fastarat.evaluation.autoattack.checks import check_logits, check_task
from fastarat.evaluation.autoattack.conduct import Conduct
from fastarat.evaluation.autoattack.engines import ENGINES, Engine, check_engine
from fastarat.evaluation.autoattack.progress import Budget, Progress
from fastarat.evaluation.autoattack.state import BatchOutcome, State, Task, are_inside, nothing
from fastarat.evaluation.autoattack.warnings import probabilities, randomness, small_logits, undefined_clean
from fastarat.evaluation.result import Evaluation, result_of
from fastarat.models.predictions import are_right, are_undefined, margins

ALONE = Conduct()
NUM_GRADIENTS = 8
"""images whose gradients tell models apart"""


def autoattack(
    logits_of: Logits,
    images: Tensor,
    labels: Tensor,
    settings: EvaluationSettings,
    *,
    searching: Logits | None = None,
    conduct: Conduct = ALONE,
    weights: str = "",
) -> Evaluation:
    """Attack `images` [N, C, H, W], bytes or numbers in [0, 1], on the device where they are; `labels`: int64 [N].

    `logits_of` maps floats [B, C, H, W] in [0, 1] to logits [B, K] (`checks.check_model` looks at a module first); of
    its gradients only the input's is asked for. float64 images stay so, all others are float32.

    `searching` maps like `logits_of`, but in another precision: the attacks that follow gradients then look at it,
    `logits_of` confirms what they find, and is attacked where it does not confirm it. Square compares margins that lie
    too close together for a low precision, and always looks at `logits_of`.

    `weights` is a checksum of the model's: what is kept of others is refused.

    Raises `UserError` for bad settings, images or logits, and for the state of another evaluation or one at work.
    """
    task = Task(images.detach(), labels.to(images.device), settings, searching is not None, weights)
    check_task(task)
    if settings.engine == "pyautoattack":
        check_engine(settings)
    world = conduct.world or World(images.device)
    runner = Runner(logits_of, searching, ENGINES[settings.engine], Budget(conduct.budget), world)
    task = task._replace(labels=task.labels.long())
    clean_logits = _clean(logits_of, task, world)
    random, softmax = randomness(logits_of, task, clean_logits), probabilities(task, clean_logits)
    of_logits = random, softmax, small_logits(task, clean_logits), undefined_clean(clean_logits)
    first = [*settings.doubts(), *filter(None, of_logits)]
    with State(conduct.state, task, is_owner=world.is_main) as saved:
        graphs = graphs_on(images.device, settings.batch, bool(random))
        gradients = partial(_gradients, logits_of, task)
        settled = decided(lambda: saved.settle(clean_logits, gradients, bool(random)).cpu(), world)
        saved.look(settled)
        settled = settled.to(images.device)
        task = task._replace(clean_logits=settled, graphs=graphs)
        robust = [are_right(task.clean_logits, task.labels).cpu()]
        progress, outcomes, stopped = Progress(conduct.advance, settings, robust[0], world.size), [], ""
        for name in settings.names:
            own, stopped = _attack(runner, name, task, robust[-1], saved, progress)
            if graphs:
                graphs.forget()
            if own:
                outcomes.append(own)
                broken = torch.cat([outcome.broken for outcome in own])
                robust.append(robust[-1].index_fill(0, broken, False))
            if stopped:
                break
    return result_of(task, robust, outcomes, first, stopped)


class Runner(NamedTuple):
    """What the attacks look at, what runs them, and for how long."""

    logits_of: Logits
    searching: Logits | None
    engine: Engine
    budget: Budget
    world: World

    def seen_by(self, name: str) -> Logits:
        """What this attack looks at."""
        is_apart = self.searching is not None and ATTACKS[name].follows_gradient
        return self.searching if is_apart else self.logits_of  # type: ignore[return-value]


def _attack(
    runner: Runner, name: str, task: Task, robust: Tensor, saved: State, progress: Progress
) -> tuple[list[BatchOutcome], str]:
    """One attack on the images `robust` (bool [N]), batch by batch, but for the batches that are saved.

    Returns where the budget ended it too, or ''.
    """
    settings, left = task.settings, robust.nonzero().flatten()
    at = settings.names.index(name)
    to_come, batches = progress.passes(*settings.names[at:]), left.split(settings.batch) if len(left) else ()

    def outcome_of(batch: tuple[int, Tensor]) -> BatchOutcome | None:
        number, rows = batch
        file = f"{at + 1}-{name}-{number:05d}.safetensors"
        counting, settle = progress.counted(runner.seen_by(name), name, len(rows))
        outcome = saved.outcome(file, rows)
        if outcome is None:
            work = len(rows) * ATTACKS[name].cost(settings).passes
            if not runner.budget.allows(work):
                return None
            outcome = _batch(runner, counting, name, task, rows)
            saved.save(file, outcome._asdict())
            runner.budget.learn(work, float(outcome.seconds))
        settle(len(outcome.broken), to_come)
        return outcome

    outcomes = divided(list(enumerate(batches)), outcome_of, runner.world)
    done = [outcome for outcome in outcomes if outcome is not None]
    stopped = f"{name} has done {len(done)} of {len(batches)} batches" if len(done) < len(batches) else ""
    return done or ([] if stopped else [nothing(task)]), stopped


def _batch(runner: Runner, counting: Logits, name: str, task: Task, rows: Tensor) -> BatchOutcome:
    """One attack on the images `rows`, and the check of what it found, whose passes `counting` does not count."""
    begun, at = perf_counter(), rows.to(task.images.device)
    x, y = task.pixels(at), task.labels[at]
    checked = _checked(runner, counting, name, task, x, y, at)
    if runner.seen_by(name) is not runner.logits_of and checked.refused.any():
        again = checked.refused.nonzero().flatten()
        checked.write(again, _checked(runner, runner.logits_of, name, task, x[again], y[again], at[again]))
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


def _checked(runner: Runner, searching: Logits, name: str, task: Task, x: Tensor, y: Tensor, rows: Tensor) -> Checked:
    """What the engine gives, and which of its finds are confirmed."""
    found, searches = runner.engine(searching, name, task, x, y, rows)
    wrong, valid, undefined = confirmed(runner.logits_of, x, found.images, y, task.settings.norm, task.settings.eps)
    broken = wrong & valid
    return Checked(
        found.images, broken, (found.broken | wrong) & ~broken, broken & undefined, found.attackable, searches
    )


@torch.no_grad()
def confirmed(
    logits_of: Logits, x: Tensor, x_adv: Tensor, y: Tensor, norm: Norm, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which of `x_adv` are misclassified; which lie in [0, 1] and in the ball round `x`; of which the logits predict
    nothing: bool [B] each."""
    logits = logits_of(x_adv)
    return ~are_right(logits, y), are_inside(x, x_adv, norm, eps), are_undefined(logits)


def _gradients(logits_of: Logits, task: Task) -> Tensor:
    """Of the first images' margins by their pixels [B, C, H, W], on the CPU; zeros where no attack follows them."""
    x, y = task.pixels(slice(NUM_GRADIENTS)), task.labels[:NUM_GRADIENTS]
    if not any(ATTACKS[name].follows_gradient for name in task.settings.names):
        return torch.zeros_like(x, device="cpu")
    x = x.detach().requires_grad_()
    return torch.autograd.grad(margins(logits_of(x), y).sum(), x, materialize_grads=True)[0].cpu()


@torch.no_grad()
def _clean(logits_of: Logits, task: Task, world: World) -> Tensor:
    """Logits [N, K] of the clean images. Raises `UserError` for what are no logits."""
    batch = task.settings.batch

    def logits_from(first: int) -> Tensor:
        x = task.pixels(slice(first, first + batch))
        logits = logits_of(x)
        check_logits(logits, len(x), task)
        return logits if world.control is None else logits.cpu()

    parts = divided(range(0, len(task.labels), batch), logits_from, world)
    logits = torch.cat(parts).to(task.images.device)
    if are_undefined(logits).all():
        raise UserError("the model returns NaN or infinity for all clean images: check its weights and its precision")
    return logits
