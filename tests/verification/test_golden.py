"""`verify` agrees with golden vectors of any net, salt and class count, and says which quantity is off."""

import zlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastarat.__main__ import main
from fastarat.common.errors import UserError
from fastarat.verification.golden_checks import verify_file

CPU = torch.device("cpu")
SALT, CLASSES, GAMMA, PREV_ACC = 5, 7, 12.0, 0.35
EPS, STEP = 8 / 255, 2 / 255
LAYERS = {"block3.layer.0.relu1": 32, "block3.layer.0.relu2": 64, "avgpool": 64}


def stored(name: str, shape: tuple[int, ...]) -> Tensor:
    """The state of a golden file by its documentation: a function of the tensor's name."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), SALT])
    if name.endswith("running_var"):
        return torch.from_numpy(rng.uniform(0.5, 1.5, shape))
    z = torch.from_numpy(rng.standard_normal(shape))
    if len(shape) == 4:
        return z * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
    if len(shape) == 2:
        return z * (1 / shape[1]) ** 0.5
    return 1 + 0.1 * z if name.endswith(".weight") else 0.1 * z


class Reference:
    """WRN-10-1 with two sets of batch-norms, in plain torch and under the published names."""

    def __init__(self):
        self.t: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self.t:
            self.t[name] = stored(name, shape)
            if "running" not in name:
                self.parameters[name] = self.t[name].requires_grad_()
        return self.t[name]

    def norm(self, name: str, x: Tensor, train: bool = True) -> Tensor:
        leaves = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.get(f"{name}.{leaf}", x.shape[1]) for leaf in leaves), train)

    def forward(self, x: Tensor, branch: str, train: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        x = F.conv2d(x, self.get("conv1.weight", 16, 3, 3, 3), padding=1)
        for b, width in enumerate((16, 32, 64), start=1):
            at, given, stride = f"block{b}.layer.0", x.shape[1], 1 if b == 1 else 2
            first = F.relu(self.norm(f"{at}.bn1.{branch}", x, train))
            out = F.conv2d(first, self.get(f"{at}.conv1.weight", width, given, 3, 3), stride=stride, padding=1)
            second = F.relu(self.norm(f"{at}.bn2.{branch}", out, train))
            if given != width:
                x = F.conv2d(first, self.get(f"{at}.convShortcut.weight", width, given, 1, 1), stride=stride)
            x = x + F.conv2d(second, self.get(f"{at}.conv2.weight", width, width, 3, 3), padding=1)
        last = F.relu(self.norm(f"bn1.{branch}", x, train)).mean((2, 3))
        logits = last @ self.get("fc.weight", CLASSES, 64).T + self.get("fc.bias", CLASSES)
        return logits, dict(zip(LAYERS, (first.mean((2, 3)), second.mean((2, 3)), last), strict=True))

    def predict(self, layer: str, z: Tensor) -> Tensor:
        at, width = f"predictor.{layer}", LAYERS[layer]
        hidden = F.relu(self.norm(f"{at}.1", z @ self.get(f"{at}.0.weight", width // 4, width).T))
        return hidden @ self.get(f"{at}.3.weight", width, width // 4).T + self.get(f"{at}.3.bias", width)

    def pgd(self, centre: Tensor, start: Tensor, y: Tensor, train: bool = True) -> Tensor:
        x = start
        for _ in range(10):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(self.forward(x, "adv", train)[0], y), x)
            x = (x.detach() + STEP * gradient.sign()).clamp(centre - EPS, centre + EPS).clamp(0, 1)
        return x.detach()

    def terms(self, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        (clean, z_clean), (adv, z_adv) = self.forward(x, "clean"), self.forward(x_adv, "adv")
        terms = {"ce_adv": PREV_ACC * F.cross_entropy(adv, y), "ce_clean": (1 - PREV_ACC) * F.cross_entropy(clean, y)}
        for layer in LAYERS:
            cosine = F.cosine_similarity(self.predict(layer, z_adv[layer]), z_clean[layer].detach())
            terms[f"invariance/{layer}"] = GAMMA / len(LAYERS) * (1 - cosine.mean())
        return {**terms, "total": sum(terms.values())}


def vectors() -> dict[str, np.ndarray]:
    """A golden file of this test's own, every entry computed by `Reference`."""
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), rng.integers(0, CLASSES, 6)
    noise = rng.uniform(-EPS, EPS, (6, 3, 8, 8))
    x, y, n = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255, torch.from_numpy(labels), torch.tensor(noise)
    found: dict[str, object] = {"arch": "wrn-10-1", "salt": SALT, "gamma": GAMMA, "num_classes": CLASSES}
    found |= {"images": images, "labels": labels, "noise": noise, "prev_acc": PREV_ACC}
    for branch in ("clean", "adv"):
        found[f"eval_logits_{branch}"] = Reference().forward(x, branch, False)[0]
    found["pgd10_evalbn_corrected"] = Reference().pgd(x, x + n, y, False)
    for kind, centre in (("corrected", x), ("published", x + n)):
        net = Reference()
        found[f"pgd10_trainbn_{kind}"] = net.pgd(centre, x + n, y)
        found |= {f"bn_after_pgd10_{kind}/{name}": t for name, t in net.t.items() if "running" in name}
    x_adv = found["pgd10_trainbn_corrected"]
    for branch, images_ in (("clean", x), ("adv", x_adv)):
        logits, features = Reference().forward(images_, branch)
        found[f"train_logits_{branch}"] = logits
        found |= {f"feature_{branch}/{layer}": z for layer, z in features.items()}
    net, losses = Reference(), []
    for step in range(3):
        terms = net.terms(x, x_adv, y)
        losses.append(float(terms["total"].detach()))
        if step == 0:
            found |= {f"loss/{name}": value for name, value in terms.items()}
            sgd = torch.optim.SGD(net.parameters.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        sgd.zero_grad()
        terms["total"].backward()
        if step == 0:
            found |= {f"grad_norm/{name}": p.grad.norm() for name, p in net.parameters.items()}
            found |= {f"grad_head/{name}": p.grad.flatten()[:8].clone() for name, p in net.parameters.items()}
        sgd.step()
        if step == 0:
            after = {name: p.detach().flatten()[:8].clone() for name, p in net.parameters.items()}
            found |= {f"param_head_after_step/{name}": value for name, value in after.items()}
            running = {name: t.clone() for name, t in net.t.items() if "running" in name and "predictor" not in name}
            found |= {f"buffer_after_step/{name}": value for name, value in running.items()}
    found["loss_trajectory_3_steps"] = losses
    return {key: v.detach().numpy() if isinstance(v, Tensor) else np.asarray(v) for key, v in found.items()}


@pytest.fixture(scope="module")
def own() -> dict[str, np.ndarray]:
    return vectors()


def rows(file: Path, entries: dict[str, np.ndarray], dtype: torch.dtype = torch.float64) -> dict[str, bool]:
    np.savez(file, **entries)
    return {row.quantity: row.holds for row in verify_file(file, dtype, CPU)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_another_net_salt_and_class_count_hold(own, tmp_path, dtype):
    result = rows(tmp_path / "own.npz", own, dtype)
    assert len(result) == 17 and all(result.values()), result


def test_float32_holds_on_the_golden_wide_net(golden):
    assert all(row.holds for row in verify_file(golden / "arat_wrn16_2.npz", torch.float32, CPU))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arat_resnet18.npz", "arat_wrn16_2.npz"])
def test_float64_holds_on_the_golden_nets(golden, name):
    assert all(row.holds for row in verify_file(golden / name, torch.float64, CPU))


def last_of(own: dict[str, np.ndarray], quantity: str) -> str:
    """The key of a quantity, of several the last."""
    return [key for key in own if key == quantity or key.startswith(f"{quantity}/")][-1]


QUANTITIES = ("eval_logits_clean", "eval_logits_adv", "bn_after_pgd10_corrected", "bn_after_pgd10_published")
QUANTITIES += ("pgd10_trainbn_published", "pgd10_evalbn_corrected", "train_logits_clean", "train_logits_adv")
QUANTITIES += ("feature_clean", "feature_adv", "loss", "grad_norm", "grad_head", "param_head_after_step")
QUANTITIES += ("buffer_after_step", "loss_trajectory_3_steps")


@pytest.mark.parametrize("turn", range(6))
def test_a_spoiled_quantity_fails_and_no_other(own, tmp_path, turn):
    """Each quantity is spoiled in its own three of six turns, so that each is once spoiled without any other one."""
    turns = combinations(range(6), 3)
    half = [name for name, spoiled_in in zip(QUANTITIES, turns, strict=False) if turn in spoiled_in]
    spoiled = {key: own[key] * (1 + 1e-6) + 1e-7 for key in (last_of(own, quantity) for quantity in half)}
    result = rows(tmp_path / "spoiled.npz", {**own, **spoiled})
    assert {name.partition(" ")[0] for name, holds in result.items() if not holds} == set(half)


def test_a_quantity_that_is_not_a_number_fails(own, tmp_path):
    quantities = ["eval_logits_adv", "bn_after_pgd10_corrected", "loss", "grad_head"]
    spoiled = {key: own[key] * np.nan for key in (last_of(own, quantity) for quantity in quantities)}
    result = rows(tmp_path / "nan.npz", {**own, **spoiled})
    assert [name for name, holds in result.items() if not holds] == quantities


MISSING = ("salt", "arch", "images", "prev_acc", "feature_clean", "eval_logits_adv", "bn_after_pgd10_corrected")
MISSING += ("pgd10_evalbn_corrected", "grad_norm", "loss_trajectory_3_steps")


@pytest.mark.parametrize("quantity", MISSING)
def test_a_missing_entry_is_named(own, tmp_path, quantity):
    kept = {key: v for key, v in own.items() if key != quantity and not key.startswith(f"{quantity}/")}
    with pytest.raises(UserError, match=quantity):
        rows(tmp_path / "missing.npz", kept)


def test_an_entry_of_another_shape_is_named(own, tmp_path):
    with pytest.raises(UserError, match="eval_logits_adv"):
        rows(tmp_path / "shape.npz", {**own, "eval_logits_adv": own["eval_logits_adv"][:, :5]})


FOREIGN = {
    "text": lambda path: path.write_text("no archive"),
    "nothing": lambda path: path.write_bytes(b""),
    "folder": lambda path: path.mkdir(),
    "array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "pickle": lambda path: np.savez(path, salt=np.array([{"a": 1}], dtype=object)),
    "other": lambda path: np.savez(path, weights=np.zeros(3)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_in_one_line(tmp_path, capsys, kind):
    path = tmp_path / "foreign.npz"
    FOREIGN[kind](path)
    assert main(["verify", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "foreign.npz" in captured.err


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(own, tmp_path, share):
    file = tmp_path / "cut.npz"
    np.savez(file, **own)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UserError, match="is no readable"):
        list(verify_file(file, torch.float64, CPU))


def test_the_exit_code_and_the_last_line_say_whether_all_hold(own, tmp_path, capsys):
    file = tmp_path / "own.npz"
    for factor, code, last in ((1, 0, "all 17 quantities hold"), (2, 1, "1 of 17 fail")):
        np.savez(file, **{**own, "eval_logits_adv": factor * own["eval_logits_adv"]})
        assert main(["verify", str(file)]) == code
        assert capsys.readouterr().out.rstrip().splitlines()[-1] == last
