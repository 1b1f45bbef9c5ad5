"""APGD takes the standard's steps, reaches its flags, stays in the ball, and treats every point as if alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastarat_kernels.pgd_step.ball import norms
from torch import Tensor, nn

from fastarat.attacks import apgd as standard
from fastarat.attacks.apgd_search import begin, look_back, random_start, window_lengths
from fastarat.attacks.attack import likeliest_wrong_classes, require_classes
from fastarat.attacks.objectives import targeted_dlr
from fastarat.common.errors import UserError
from fastarat.verification.stored_net import load_kit_model
from tests.helpers.attacks import ascent_by_keywords as apgd
from tests.helpers.attacks import by_keywords
from tests.helpers.host_syncs import HostSync, NoHostSync

apgd_ce, apgd_t = by_keywords(standard.apgd_ce), by_keywords(standard.apgd_t)

FILE = {"linf": "Linf", "l2": "L2"}
EPS = {"linf": 0.1, "l2": 0.5}
ROWS = torch.arange(8)
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


@pytest.fixture
def net() -> nn.Module:
    """A net of 10 classes for images [N, 1, 6, 6] in float64."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 10)).double()


def batch(net: nn.Module, n: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images, and as labels what the net says."""
    x = torch.rand(n, 1, 6, 6, dtype=dtype)
    return x, net.to(dtype)(x).argmax(1)


def iterates(**settings) -> tuple[Tensor, Tensor, Tensor]:
    """Every iterate of a run [steps + 1, B, C, H, W]; the best losses; which points are broken."""
    seen, best = [], []

    def show(iteration, search):
        assert iteration == len(seen)
        seen.append(search.x_adv)
        best.append(search.best_loss)

    broken = apgd(**settings, compact_every=1000, show=show)[1]
    return torch.stack(seen), best[-1], broken


# The steps, from the description: one point, whole histories, no batch.


def ball(x: Tensor, centre: Tensor, eps: float, norm: str) -> Tensor:
    if norm == "linf":
        return centre + (x - centre).clamp(-eps, eps)
    length = float((x - centre).norm())
    return centre + (x - centre) * min(1, eps / max(length, 1e-30))


def one_point(net: nn.Module, x: Tensor, start: Tensor, loss_of, eps: float, norm: str, ends: tuple[int, ...]) -> list:
    """The iterates of 100 steps from `start` for a single image, windows ending after the iterations `ends`."""

    def value(v: Tensor) -> tuple[float, Tensor]:
        v = v.clone().requires_grad_()
        loss = loss_of(net(v))
        (gradient,) = torch.autograd.grad(loss, v)
        return float(loss.detach()), gradient

    history, seen, best, step = [0.0] * 101, [start], {0: value(start)}, 2 * eps
    here, before, at, halved, last_end, best_then = start, start, 0, True, 0, best[0][0]
    points = {0: start}
    gradient = best[0][1]
    for i in range(1, 101):
        direction = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        ascended = ball(here + step * direction, x, eps, norm).clamp(0, 1)
        a = 1 if i == 1 else 0.75
        here, before = ball(here + a * (ascended - here) + (1 - a) * (here - before), x, eps, norm).clamp(0, 1), here
        seen.append(here)
        points[i], (history[i], gradient) = here, value(here)
        best[i] = (history[i], gradient)
        if history[i] > best[at][0]:
            at = i
        if i in ends:
            # The slot before iterate 1 is 0, not the start's loss.
            rises = sum(history[j] > history[j - 1] for j in range(last_end + 1, i + 1))
            stalled = rises <= 0.75 * (i - last_end) or (not halved and best[at][0] == best_then)
            if stalled:
                step, here, gradient = step / 2, points[at], best[at][1]
            halved, best_then, last_end = stalled, best[at][0], i
    return seen


@NORMS
@pytest.mark.parametrize("loss", ["cross-entropy", "targeted-dlr"])
def test_every_iterate_is_the_one_of_the_description(net, norm, loss):
    x, y = batch(net, 6)
    target, rows = likeliest_wrong_classes(net(x).detach(), 9)[:, 0], torch.arange(6)
    start = random_start(x, rows, norm, EPS[norm], 3, 0)
    common = {"logits_of": net, "x": x, "y": y, "rows": rows, "norm": norm, "eps": EPS[norm], "seed": 3, "run": 0}
    ours = iterates(**common, loss=loss, target=target)[0]
    for i in range(6):

        def loss_of(z: Tensor, i: int = i) -> Tensor:
            one = slice(i, i + 1)
            return F.cross_entropy(z, y[one]) if loss == "cross-entropy" else targeted_dlr(z, y[one], target[one])[0]

        ends = (22, 41, 57, 70, 80, 87, 93, 99)
        theirs = one_point(net, x[i : i + 1], start[i : i + 1], loss_of, EPS[norm], norm, ends)
        # Both in float64; on a piecewise linear net roundings do not grow.
        torch.testing.assert_close(ours[:, i : i + 1], torch.stack(theirs), rtol=0, atol=1e-9)


def test_windows_of_100_steps_end_where_the_standards_do():
    assert window_lengths(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert list(window_lengths(1).items()) == [(1, 1)]


def test_a_best_loss_that_stays_halves_the_step_but_not_at_the_first_look(net):
    x, y = batch(net)
    rising = begin(net, x, y, y, x, 0.1, "cross-entropy")._replace(num_rises=torch.full((8,), 22))
    first = look_back(rising, 22)
    assert torch.equal(first.step_size, rising.step_size)
    second = look_back(first._replace(num_rises=torch.full((8,), 19)), 19)
    assert torch.equal(second.step_size, rising.step_size / 2)
    # Nor where it was halved at the last look.
    assert torch.equal(look_back(second._replace(num_rises=torch.full((8,), 16)), 16).step_size, second.step_size)


@NORMS
def test_a_start_lies_on_the_balls_surface(norm):
    x = torch.full((8, 1, 6, 6), 0.5, dtype=torch.float64)
    shift = random_start(x, ROWS, norm, EPS[norm], 0, 0) - x
    length = shift.abs().amax((1, 2, 3)) if norm == "linf" else norms(shift).flatten()
    torch.testing.assert_close(length, torch.full_like(length, EPS[norm]), rtol=1e-6, atol=0)
    assert random_start(x + 0.5, ROWS, norm, 0.3, 0, 0).max() == 1


# The kit: stored results of the standard.


def stored(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.18), ("l2", 0.75)])
@pytest.mark.parametrize(("name", "loss"), [("apgd_ce", "cross-entropy"), ("apgd_t", "targeted-dlr")])
def test_from_the_stored_start_every_iterate_is_the_stored_one(kit, name, loss, norm, eps, dtype):
    trace, data = stored(kit / f"trace_plain_{FILE[norm]}.npz"), stored(kit / "data.npz")
    x, y, target = data["x_test"][trace["index"]].to(dtype), data["y_test"][trace["index"]], trace["apgd_t_target"]
    net = load_kit_model(kit, "plain").to(dtype)
    assert torch.equal(likeliest_wrong_classes(net(x).detach(), 9)[:, 0], target)
    theirs = trace[f"{name}_iterates"].to(dtype)
    run = {"logits_of": net, "x": x, "y": y, "rows": trace["index"], "norm": norm, "eps": eps, "seed": 0, "run": 0}
    ours, best, broken = iterates(**run, loss=loss, target=target, start=theirs[0])
    apart = (ours - theirs).abs().flatten(2).amax(2)
    within_20, within_100 = (apart[:21].amax(0) <= 1e-5).sum(), (apart.amax(0) <= 1e-4).sum()
    # The kit's own bounds: in L2 the unit gradient carries roundings on, more so against another dtype.
    assert within_20 >= (12 if dtype == torch.float32 or norm == "linf" else 9)
    assert within_100 >= (12 if norm == "linf" else 11) or dtype == torch.float64
    assert (best - trace[f"{name}_loss_best"]).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-4)
    assert torch.equal(~broken, trace[f"{name}_robust"])


def standards_start(x: Tensor, norm: str, eps: float) -> Tensor:
    """The start that the standard draws for a whole batch, once its generator is seeded."""
    noise = 2 * torch.rand(x.shape) - 1 if norm == "linf" else torch.randn(x.shape)
    length = noise.abs().amax((1, 2, 3), keepdim=True) if norm == "linf" else norms(noise)
    return (x + eps * noise / length).clamp(0, 1)


RUNS = [("plain", "linf", 0.18), ("plain", "l2", 0.75), ("scaled", "linf", 0.18)]


@pytest.mark.parametrize(("name", "norm", "eps"), RUNS)
def test_from_the_standards_starts_apgd_ce_leaves_the_standards_flags(kit, name, norm, eps):
    data, flags = stored(kit / "data.npz"), stored(kit / f"aa_{name}_{FILE[norm]}_sequential_seed0.npz")
    net, left = load_kit_model(kit, name), flags["robust_after_clean"].nonzero().flatten()
    x, y = data["x_test"][left], data["y_test"][left]
    torch.manual_seed(0)
    start = standards_start(x, norm, eps)
    expected = flags["robust_after_apgd_ce"][left]
    mine = ~expected | (left % 3 == 0)  # what the standard left robust takes all steps: a third shows it
    common = {"norm": norm, "eps": eps, "seed": 0, "run": 0, "start": start[mine]}
    _, broken, _ = apgd(net, x[mine], y[mine], left[mine], loss="cross-entropy", **common)
    # Another machine's roundings may tip a point on the edge.
    assert (~broken != expected[mine]).sum() <= 2


@pytest.mark.no_cover  # what it runs is counted by others
def test_from_the_standards_starts_apgd_t_leaves_the_standards_flags(kit):
    data, flags = stored(kit / "data.npz"), stored(kit / "aa_plain_L2_sequential_seed0.npz")
    net, left = load_kit_model(kit, "plain"), flags["robust_after_apgd_ce"].nonzero().flatten()
    targets = likeliest_wrong_classes(net(data["x_test"]).detach(), 9)
    # Each point is attacked as if alone. What the standard left robust takes all nine targets: a third shows it.
    attacked = ~flags["robust_after_apgd_t"] | (torch.arange(360) % 3 == 0)
    torch.manual_seed(0)
    for rank in range(9):
        mine, rows = attacked[left], left[attacked[left]]
        x, y, target = data["x_test"][rows], data["y_test"][rows], targets[rows, rank]
        start = standards_start(data["x_test"][left], "l2", 0.75)[mine]
        run = {"norm": "l2", "eps": 0.75, "seed": 0, "run": 0, "start": start}
        left = left[~torch.isin(left, rows[apgd(net, x, y, rows, loss="targeted-dlr", target=target, **run)[1]])]
    robust = torch.zeros(360, dtype=torch.bool).index_fill(0, left, True)
    assert (robust != flags["robust_after_apgd_t"]).sum() <= 2


@pytest.mark.parametrize(("attack", "count"), [(apgd_ce, 360), (apgd_t, 60)])
def test_alone_from_its_own_starts_each_leaves_as_many_as_the_standard(kit, attack, count):
    data, flags = stored(kit / "data.npz"), stored(kit / "aa_plain_Linf_individual_seed0.npz")
    net, rows = load_kit_model(kit, "plain"), flags["robust_to_clean"][:count].nonzero().flatten()
    x, y = data["x_test"][rows], data["y_test"][rows]
    _, broken, _ = attack(net, x, y, rows, norm="linf", eps=0.18, seed=0)
    theirs = int(flags[f"robust_to_{attack.__name__}"][:count].sum())
    assert abs(int((~broken).sum()) - theirs) <= 0.02 * 360


def test_logits_times_100_hide_from_cross_entropy_but_not_from_the_targeted_loss(kit):
    data, flags = stored(kit / "data.npz"), stored(kit / "aa_scaled_Linf_sequential_seed0.npz")
    net, rows = load_kit_model(kit, "scaled"), flags["robust_after_clean"][:60].nonzero().flatten()
    x, y = data["x_test"][rows], data["y_test"][rows]
    settings = {"norm": "linf", "eps": 0.18, "seed": 0}
    by_ce = apgd_ce(net, x, y, rows, **settings)[1]
    by_t = apgd_t(net, x, y, rows, targets=3, **settings)[1]  # nine find 33 %
    assert by_ce.float().mean() < 0.1 and by_t.float().mean() > 0.25


# What it finds.


@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attack", [apgd_ce, apgd_t])
def test_found_points_are_misclassified_and_inside_and_the_rest_is_untouched(net, norm, dtype, attack):
    x, y = batch(net, 64, dtype)
    before = x.clone()
    settings = {"norm": norm, "eps": EPS[norm] / 2, "seed": 0, **({"targets": 2} if attack is apgd_t else {})}
    found, broken, _ = attack(net, x, y, torch.arange(64), **settings)
    assert 0 < broken.sum() < 64
    assert torch.equal(net(found).argmax(1) != y, broken)
    assert torch.equal(found[~broken], x[~broken]) and torch.equal(x, before)
    shift = found - x
    length = shift.abs().max() if norm == "linf" else norms(shift).max()
    assert found.dtype == dtype and found.min() >= 0 and found.max() <= 1
    # A few roundings of pixels near 1.
    assert length <= EPS[norm] / 2 + 4 * torch.finfo(dtype).eps
    assert not found.requires_grad and all(parameter.grad is None for parameter in net.parameters())


@NORMS
def test_broken_means_any_iterate_and_found_is_the_last_misclassified_one(net, norm):
    (x, y), rows = batch(net, 64), torch.arange(64)
    common = {"norm": norm, "eps": EPS[norm] / 2, "loss": "cross-entropy", "seed": 0, "run": 0}
    seen = iterates(logits_of=net, x=x, y=y, rows=rows, **common)[0]
    found, broken, _ = apgd(net, x, y, rows, compact_every=1000, **common)
    wrong = torch.stack([net(iterate).argmax(1) != y for iterate in seen])
    assert torch.equal(wrong.any(0), broken) and 0 < broken.sum() < 64
    for i in broken.nonzero().flatten():
        assert torch.equal(found[i], seen[wrong[:, i].nonzero().max(), i])


@pytest.mark.parametrize("wrong_at", [0, 1, 57, 100])
def test_one_misclassified_iterate_is_enough_be_it_the_start_or_the_last(net, wrong_at):
    x, y = batch(net, 2)
    calls = []

    def sometimes_wrong(v: Tensor) -> Tensor:
        calls.append(v)
        right = 20 * F.one_hot(y[: len(v)], 10) + 0 * net(v)
        return -right if len(calls) == wrong_at + 1 else right

    common = {"norm": "linf", "eps": 0.1, "loss": "cross-entropy", "seed": 0, "run": 0}
    found, broken, _ = apgd(sometimes_wrong, x, y, ROWS[:2], **common)
    assert broken.all() and torch.equal(found, calls[wrong_at])


@NORMS
@pytest.mark.parametrize("attack", [apgd_ce, apgd_t])
def test_a_points_result_depends_neither_on_its_batch_nor_on_its_place_in_it(net, norm, attack):
    x, y = batch(net, 12)
    rows, settings = torch.arange(12) + 100, {"norm": norm, "eps": EPS[norm] / 2, "seed": 7, "steps": 15}
    settings |= {"targets": 2} if attack is apgd_t else {}
    found, broken, _ = attack(net, x, y, rows, **settings)
    assert 0 < broken.sum() < 12
    order = torch.randperm(12)
    for parts in (order.split(12), order.split(5), order.split(1)):
        for part in parts:
            again, flags, _ = attack(net, x[part], y[part], rows[part], **settings)
            assert torch.equal(flags, broken[part])
            torch.testing.assert_close(again, found[part], rtol=0, atol=1e-9)


@NORMS
@pytest.mark.parametrize("every", [1, 7])
def test_dropping_broken_points_changes_no_other_point(net, norm, every):
    x, y = batch(net, 64)

    def run(compact_every: int) -> tuple[dict, Tensor]:
        def show(iteration, search):
            seen[iteration] = search

        seen = {}
        common = {"norm": norm, "eps": EPS[norm] / 2, "loss": "cross-entropy", "seed": 0, "run": 0}
        broken = apgd(net, x, y, torch.arange(64), compact_every=compact_every, show=show, **common)[1]
        return seen, broken

    (shown, broken), (whole, expected) = run(every), run(1000)
    assert torch.equal(broken, expected) and 0 < broken.sum() < 64
    # Broken in the last few iterations: not dropped yet.
    last = shown[100]
    assert len(last.x) < 64
    left, all_left = last.x_adv[~last.broken], whole[100].x_adv[~expected]
    torch.testing.assert_close(left, all_left, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", [apgd_ce, apgd_t])
def test_the_seed_decides_the_result(net, attack):
    x, y = batch(net, 32)

    def found(seed: int) -> Tensor:
        settings = {"targets": 2} if attack is apgd_t else {}
        return attack(net, x, y, torch.arange(32), norm="linf", eps=0.05, seed=seed, steps=20, **settings)[0]

    assert torch.equal(found(1), found(1)) and not torch.equal(found(1), found(2))


def test_runs_rows_and_seeds_start_apart():
    x = torch.full((8, 1, 6, 6), 0.5)

    def start(seed=0, run=0, rows=ROWS):
        return random_start(x, rows, "linf", 0.1, seed, run)

    assert torch.equal(start(rows=ROWS.flip(0)), start().flip(0))
    for other in (start(seed=1), start(run=1), start(rows=ROWS + 8)):
        assert (other == start()).float().mean() < 0.1


def test_a_point_that_survives_costs_a_pass_more_than_steps_a_run_and_a_broken_one_leaves(net):
    x, y = batch(net, 4)
    sizes = []

    def counted(v: Tensor) -> Tensor:
        sizes.append(len(v))
        return net(v)

    apgd_ce(counted, x, y, ROWS[:4], norm="linf", eps=1e-6, seed=0)
    assert sizes == [4] * 101
    sizes.clear()
    apgd_t(counted, x, y, ROWS[:4], norm="linf", eps=1e-6, seed=0, steps=10)
    assert sizes == [4] * (1 + 9 * 11)
    sizes.clear()
    found, broken, _ = apgd_ce(counted, x, (y + 1) % 10, ROWS[:4], norm="linf", eps=1e-6, seed=0)
    assert broken.all() and sizes == [4] * 11
    assert (found != x).flatten(1).any(1).all()


def test_the_host_waits_once_for_every_ten_iterations(net):
    x, y = batch(net, 8)
    settings = {"norm": "linf", "eps": 1e-6, "seed": 0, "steps": 30}
    with NoHostSync(allowed=3):
        apgd_ce(net, x, y, ROWS, **settings)
    with pytest.raises(HostSync), NoHostSync(allowed=2):
        apgd_ce(net, x, y, ROWS, **settings)


def test_targets_are_the_likeliest_wrong_classes_and_each_has_its_run(net):
    x, y = batch(net, 4)
    order, seen = net(x).argsort(1, descending=True), []

    def show(iteration, search):
        if iteration == 0:
            seen.append(search.target)

    settings = {"norm": "l2", "eps": 1e-6, "seed": 0, "targets": 5, "steps": 1, "show": show}
    apgd_t(net, x, y, ROWS[:4], **settings)
    assert torch.equal(torch.stack(seen, 1), order[:, 1:6])


def test_each_target_starts_from_new_noise_of_the_points_own(net):
    x, y = batch(net, 4)
    y[0] = (y[0] + 1) % 10  # misclassified already: the run has the other three
    rows, starts = ROWS[:4] + 50, []

    def show(iteration, search):
        if iteration == 0:
            starts.append(search.x_adv)

    apgd_t(net, x, y, rows, norm="linf", eps=1e-6, seed=3, targets=3, steps=1, show=show)
    expected = [random_start(x, rows, "linf", 1e-6, 3, run)[1:] for run in (1, 2, 3)]
    assert torch.equal(torch.stack(starts), torch.stack(expected))


def test_clean_logits_that_are_given_are_not_computed_again(net):
    x, y = batch(net, 4)
    settings, sizes = {"norm": "l2", "eps": 0.5, "seed": 0, "targets": 1, "steps": 5}, []

    def counted(v: Tensor) -> Tensor:
        sizes.append(len(v))
        return net(v)

    found, _, _ = apgd_t(counted, x, y, ROWS[:4], clean_logits=net(x).detach(), **settings)
    assert len(sizes) == 6
    assert torch.equal(found, apgd_t(net, x, y, ROWS[:4], **settings)[0])


def test_an_image_that_is_misclassified_already_is_its_own_adversarial_example(net):
    x, y = batch(net, 4)
    wrong = (y + torch.tensor([0, 1, 0, 2])) % 10
    found, broken, _ = apgd_t(net, x, wrong, ROWS[:4], norm="linf", eps=1e-6, seed=0, steps=5)
    assert broken.tolist() == [False, True, False, True] and torch.equal(found, x)


@pytest.mark.parametrize("attack", [apgd_ce, apgd_t])
def test_no_points_give_no_points(net, attack):
    x, y = batch(net, 4)
    found, broken, _ = attack(net, x[:0], y[:0], ROWS[:0], norm="linf", eps=0.1, seed=0)
    assert found.shape == (0, 1, 6, 6) and broken.shape == (0,)


@pytest.mark.parametrize(("num_classes", "num_targets", "fix"), [(3, 1, "attacks without"), (9, 9, "8 targets")])
def test_more_targets_than_wrong_classes_are_refused(num_classes, num_targets, fix):
    with pytest.raises(UserError, match=f"the model has {num_classes}: give {fix}"):
        require_classes("apgd-t", num_classes, num_targets, 4)


def test_a_gradient_of_zero_is_there_to_be_seen_at_the_start(net):
    x, y = batch(net, 4)
    zero = []

    def show(iteration, search):
        if iteration == 0:
            zero.append(bool((search.gradient == 0).all()))

    apgd_ce(lambda v: net((v * 4).round() / 4), x, y, ROWS[:4], norm="linf", eps=0.01, seed=0, show=show)
    apgd_ce(net, x, y, ROWS[:4], norm="linf", eps=0.01, seed=0, show=show)
    assert zero == [True, False]
