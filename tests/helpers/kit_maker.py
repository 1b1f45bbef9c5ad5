"""Makes a kit of a test's own: two small nets of random weights, and results of plain loops.

`smooth` has a batch-norm; `rounded` is the same net behind a rounding to nine levels, so that only Square moves it.
Whole attacks are the engine's, with another seed than the files say.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fastarat.config.evaluation import STANDARD
from fastarat.verification.stored_net import load_kit_model
from tests.helpers.attacks import autoattacked, broken_by

N, CLASSES = 24, 10
EPS = {("smooth", "Linf"): 0.02, ("smooth", "L2"): 0.1, ("rounded", "Linf"): 0.07}
LAYERS = [
    {"op": "conv2d", "name": "c", "stride": 1, "padding": 1},
    {"op": "batchnorm2d", "name": "n"},
    {"op": "relu"},
    {"op": "flatten"},
    {"op": "linear", "name": "l"},
]
NETS = {"smooth": LAYERS, "rounded": [{"op": "quantize", "levels": 8}, *LAYERS]}


def weights() -> dict[str, Tensor]:
    norm = {f"n.{leaf}": torch.rand(4) + 0.5 for leaf in ("weight", "running_var")}
    norm |= {f"n.{leaf}": torch.randn(4) for leaf in ("bias", "running_mean")}
    return {"c.weight": torch.randn(4, 2, 3, 3), **norm, "l.weight": torch.randn(CLASSES, 144) / 12}


def logits(name: str, t: dict[str, Tensor], x: Tensor) -> Tensor:
    """The net in plain torch, in the images' precision."""
    t = {key: value.to(x.dtype) for key, value in t.items()}
    x = (x * 8).round().div(8) if name == "rounded" else x
    leaves = ("running_mean", "running_var", "weight", "bias")
    z = F.batch_norm(F.conv2d(x, t["c.weight"], padding=1), *(t[f"n.{leaf}"] for leaf in leaves))
    return F.linear(z.relu().flatten(1), t["l.weight"])


def into_ball(x: Tensor, centre: Tensor, eps: float, norm: str) -> Tensor:
    shift = x - centre
    if norm == "Linf":
        return (centre + shift.clamp(-eps, eps)).clamp(0, 1)
    length = shift.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (centre + shift * (eps / length.clamp_min(1e-30)).clamp_max(1)).clamp(0, 1)


def direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "Linf":
        return gradient.sign()
    return gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-30)


def gradient_of(loss, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    losses = loss(leaf)
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


def cross_entropy(net, y: Tensor):
    return lambda x: -net(x).log_softmax(1)[torch.arange(len(y)), y]


def margin(net, y: Tensor):
    others = lambda z: z.scatter(1, y[:, None], -torch.inf).amax(1)  # noqa: E731
    return lambda x: others(net(x)) - net(x)[torch.arange(len(y)), y]


def pgd_file(net, x: Tensor, y: Tensor, eps: float, norm: str) -> dict[str, np.ndarray]:
    noise = (2 * torch.rand_like(x) - 1) * eps / (1 if norm == "Linf" else 6)
    found: dict[str, object] = {"eps": np.float64(eps), "step": np.float64(eps / 4), "noise": noise}
    for name, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        clean = x.to(dtype)
        found[f"clean_logits_{name}"] = net(clean)
        for tag, loss in (("pgd20", cross_entropy(net, y)), ("cw20", margin(net, y))):
            x_adv = (clean + noise.to(dtype)).clamp(0, 1)
            for _ in range(20):
                x_adv = into_ball(x_adv + eps / 4 * direction(gradient_of(loss, x_adv)[1], norm), clean, eps, norm)
            found[f"{tag}_logits_{name}"], found[f"{tag}_robust_{name}"] = net(x_adv), net(x_adv).argmax(1) == y
            if name == "f32":
                found[f"{tag}_xadv_f32"] = x_adv
    return arrays(found)


def apgd(net, loss, x: Tensor, y: Tensor, start: Tensor, eps: float, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """All iterates of one image; its best loss; whether it stayed robust."""
    value, gradient = gradient_of(loss, start)
    step, here, before, halved, best_then, rises, last = 2 * eps, start, start, True, value, 0, torch.zeros(1)
    best, iterates, robust, end = (value, start, gradient), [start], net(start).argmax(1) == y, 22
    window = 22
    for i in range(1, 101):
        ascended = into_ball(here + step * direction(gradient, norm), x, eps, norm)
        a = 1 if i == 1 else 0.75
        moved = into_ball(here + a * (ascended - here) + (1 - a) * (here - before), x, eps, norm)
        here, before = moved, here
        value, gradient = gradient_of(loss, here)
        iterates.append(here)
        rises, last, robust = rises + int(value > last), value, robust & (net(here).argmax(1) == y)
        if value > best[0]:
            best = (value, here, gradient)
        if i == end:
            stalled = rises <= 0.75 * window or (not halved and bool(best_then >= best[0]))
            if stalled:
                step, here, gradient = step / 2, best[1], best[2]
            halved, best_then, rises, window = stalled, best[0], 0, max(window - 3, 6)
            end += window
    return torch.stack(iterates), best[0], robust


def trace_file(net, x: Tensor, y: Tensor, eps: float, norm: str) -> dict[str, np.ndarray]:
    """Traces of three images. A search of 100 steps can hang on the rounding of a loss that comes back to its best, and
    processors round otherwise: images whose traces are not those of float64 are passed over."""
    target = net(x).topk(2).indices[:, 1]

    def targeted(i: int):
        def loss(v: Tensor) -> Tensor:
            z = net(v)
            largest = z.topk(4).values
            spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12
            return (z[:, target[i]] - z[:, y[i]]) / spread

        return loss

    def traced(name: str, i: int) -> tuple[Tensor, Tensor, Tensor] | None:
        one = slice(i, i + 1)
        start = into_ball(x[one] + eps * direction(torch.randn_like(x[one]), norm), x[one], eps, norm)
        loss = cross_entropy(net, y[one]) if name == "apgd_ce" else targeted(i)
        run, exact = (apgd(net, loss, x[one].to(d), y[one], start.to(d), eps, norm) for d in (x.dtype, torch.float64))
        return run if (run[0] - exact[0]).abs().max() < 1e-5 else None

    runs, index = {"apgd_ce": [], "apgd_t": []}, []
    for i in range(4, len(x)):
        both = [traced(name, i) for name in runs]
        if None in both:
            continue
        index.append(i)
        for name, run in zip(runs, both, strict=True):
            runs[name].append(run)
        if len(index) == 3:
            break
    assert len(index) == 3, "the kit needs three images whose traces rounding leaves alone"
    found: dict[str, object] = {"index": torch.tensor(index), "apgd_t_target": target[index]}
    for name, of in runs.items():
        iterates, best, robust = zip(*of, strict=True)
        found[f"{name}_iterates"] = torch.cat(iterates, 1)
        found[f"{name}_loss_best"], found[f"{name}_robust"] = torch.cat(best), torch.cat(robust)
    return arrays(found)


def arrays(found: dict) -> dict[str, np.ndarray]:
    return {key: v.detach().numpy() if isinstance(v, Tensor) else np.asarray(v) for key, v in found.items()}


def aa_files(folder: Path, name: str, norm: str, x: Tensor, y: Tensor) -> dict[str, dict[str, np.ndarray]]:
    model = load_kit_model(folder, name).requires_grad_(False)
    settings = {"norm": norm.lower(), "eps": EPS[name, norm], "seed": 11}
    whole = autoattacked(model, x, y, **settings)
    x_adv = x.index_copy(0, whole.rows, whole.x_adv)
    flags = {f"robust_after_{stage.replace('-', '_')}": robust for stage, robust in whole.flags.items()}
    found = {"sequential_seed0": arrays({**flags, "broken_by": broken_by(whole).to(torch.int8), "x_adv": x_adv})}
    if (name, norm) == ("smooth", "Linf"):
        alone = {"clean": whole.flags["clean"]}
        alone |= {of: autoattacked(model, x, y, attacks=(of,), **settings).flags[of] for of in STANDARD}
        worst = torch.stack(list(alone.values())).all(0)
        flags = {f"robust_to_{of.replace('-', '_')}": robust for of, robust in alone.items()}
        found["individual_seed0"] = arrays({**flags, "robust_worst_case": worst})
    return found


def make_kit(folder: Path) -> Path:
    """Write the kit into `folder`."""
    torch.manual_seed(0)
    x, t, recorded = torch.rand(N, 2, 6, 6), weights(), {}
    y = logits("smooth", t, x).argmax(1).index_fill(0, torch.arange(2), 0)
    np.savez(folder / "data.npz", x_test=x.numpy(), y_test=y.numpy())
    save_file(t, folder / "smooth.safetensors")
    for name, layers in NETS.items():
        (folder / f"arch_{name}.json").write_text(json.dumps({"layers": layers, "weights": "smooth.safetensors"}))
    for (name, norm), eps in EPS.items():
        net = lambda x, name=name: logits(name, t, x)  # noqa: E731
        np.savez(folder / f"pgd_{name}_{norm}.npz", **pgd_file(net, x, y, eps, norm))
        if name == "smooth":
            np.savez(folder / f"trace_{name}_{norm}.npz", **trace_file(net, x, y, eps, norm))
        for run, found in aa_files(folder, name, norm, x, y).items():
            np.savez(folder / f"aa_{name}_{norm}_{run}.npz", **found)
            recorded.setdefault(f"{name}_{norm}", {})[run] = {"eps": eps}
    (folder / "expected.json").write_text(json.dumps(recorded))
    return folder
