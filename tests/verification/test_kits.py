"""A kit of stored results holds where the engine is right, and each of its quantities fails once it is spoiled."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastarat.__main__ import main
from fastarat.attacks.attack import nothing_found
from fastarat.common.errors import UserError
from fastarat.verification.plan import kit_parts, parts_of
from fastarat.verification.whole_attacks import Stage, images_of, judge
from tests.helpers.attacks import replace_attack, shorten
from tests.helpers.kit_maker import make_kit

CPU = torch.device("cpu")
QUICK = ("units", "nets", "pgd", "traces")
ALL = (*QUICK, "attacks")
SHORT = {"apgd-ce": {"steps": 5}, "apgd-t": {"steps": 3}, "fab-t": {"steps": 4}, "square": {"queries": 200}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A kit of the test's own; not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shorten(monkeypatch, SHORT)
        return make_kit(tmp_path_factory.mktemp("made"))


@pytest.fixture
def own(made, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "own")


def rows(folder: Path, only=QUICK) -> dict:
    found = [row for part in kit_parts(folder, CPU, only) for row in part.rows(lambda amount: None)]
    assert len({row.quantity for row in found}) == len(found), "every row has a name of its own"
    return {row.quantity: row for row in found}


def failing(folder: Path, only=QUICK) -> list[str]:
    return [name for name, row in rows(folder, only).items() if not row.holds]


def spoil(folder: Path, file: str, **changes) -> None:
    """Replace entries of a file by functions of what they were; None takes one out."""
    with np.load(folder / file) as stored:
        entries = dict(stored)
    for name, change in changes.items():
        value = entries.pop(name)
        if change is not None:
            entries[name] = change(value.copy())
    np.savez(folder / file, **entries)


def flipped(num: int):
    """The first so many flags that are set, or numbers, are not as they were."""

    def change(flags: np.ndarray) -> np.ndarray:
        flags[np.flatnonzero(flags)[:num]] = False
        return flags

    return change


def times(factor: float):
    return lambda value: value * np.asarray(factor, value.dtype)


# --- a kit of one's own


def test_a_kit_with_batch_norm_and_one_that_only_square_breaks_hold_whole(made, monkeypatch):
    shorten(monkeypatch, SHORT)
    found, told = [], []
    parts = kit_parts(made, CPU, ALL)
    for part in parts:
        found += part.rows(told.append)
    assert [row.quantity for row in found if not row.holds] == []
    assert sum(told) == pytest.approx(sum(part.work for part in parts))
    names = [row.quantity for row in found]
    for name in (
        "rounded Linf: clean logits f64",
        "smooth L2: cw20 logits, median",
        "smooth Linf: trace apgd-t, flags",
    ):
        assert name in names
    square = next(row for row in found if row.quantity == "rounded Linf sequential seed0: robust to square")
    assert square.expected < next(row.expected for row in found if "rounded" in row.quantity and "fab" in row.quantity)
    assert "rounded Linf sequential seed0: warnings of hidden gradients" in names
    assert "smooth Linf individual seed0: robust to all" in names


@pytest.mark.parametrize(
    ("file", "changes", "fails"),
    [
        ("pgd_smooth_L2.npz", {"clean_logits_f64": times(1 + 1e-7)}, "clean logits f64"),
        ("pgd_smooth_L2.npz", {"clean_logits_f64": times(np.nan)}, "clean logits f64"),
        ("pgd_smooth_L2.npz", {"clean_logits_f32": times(1.001)}, "clean logits f32"),
        ("pgd_smooth_L2.npz", {"cw20_logits_f32": times(1.001)}, "stored cw20 logits"),
        ("pgd_rounded_Linf.npz", {"pgd20_robust_f32": flipped(1)}, "stored pgd20 flags"),
        ("pgd_smooth_L2.npz", {"pgd20_robust_f64": flipped(3)}, "pgd20 robust"),
        ("pgd_smooth_L2.npz", {"cw20_logits_f64": times(1.001)}, "cw20 logits, median"),
        ("pgd_smooth_L2.npz", {"step": times(0.5)}, "pgd20 logits, median"),
        ("trace_smooth_L2.npz", {"apgd_ce_iterates": lambda x: np.flip(x, 0)}, "trace apgd-ce, points within 1e-04"),
        ("trace_smooth_L2.npz", {"apgd_t_loss_best": times(1.01)}, "trace apgd-t, best loss"),
        ("trace_smooth_Linf.npz", {"apgd_ce_robust": np.logical_not}, "trace apgd-ce, flags"),
        ("trace_smooth_Linf.npz", {"apgd_t_target": lambda t: (t + 1) % 10}, "trace apgd-t, best loss"),
        ("aa_smooth_L2_sequential_seed0.npz", {"robust_after_clean": flipped(1)}, "clean flags"),
        ("aa_smooth_L2_sequential_seed0.npz", {"x_adv": times(0.8)}, "stored images outside the ball"),
        ("aa_smooth_L2_sequential_seed0.npz", {"broken_by": lambda by: by + 1}, "stored images that fool the net"),
    ],
)
def test_a_spoiled_quantity_fails(own, file, changes, fails):
    for other in own.glob("*_*_*.npz"):
        if other.name != file:
            other.unlink()
    spoil(own, file, **changes)
    wrong = failing(own)
    assert any(fails in name for name in wrong), wrong
    key = " ".join(file.removesuffix(".npz").split("_")[1:3])
    assert all(name.startswith(key) for name in wrong)


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"proj_l2_delta": times(1.01)}, "units: l2 projection, length"),
        ({"proj_linf_delta": times(1.01)}, "units: linf projection, length"),
        ({"dlr": times(1.01)}, "units: dlr"),
        ({"dlr_targeted_grad": times(1.01)}, "units: dlr_targeted_grad"),
        ({"square_p": times(1.0001)}, "units: square_p, queries"),
        ({"square_side_l2_28": lambda side: side + 1}, "units: square_side_l2_28, queries"),
        ({"square_eta_l2_5": np.transpose}, "units: square_eta_l2_5"),
    ],
)
def test_a_spoiled_unit_fails_and_no_other(kit, tmp_path, change, fails):
    shutil.copy(kit / "unit_vectors.npz", tmp_path)
    assert not failing(tmp_path)
    spoil(tmp_path, "unit_vectors.npz", **change)
    assert failing(tmp_path) == [fails]


def test_other_weights_fail(own):
    for file in set(own.glob("*_*_*.npz")) - set(own.glob("pgd_smooth_Linf*")):
        file.unlink()
    (own / "arch_smooth.json").write_text((own / "arch_rounded.json").read_text())
    assert any("clean logits" in name for name in failing(own))


# --- whole attacks


def test_counts_are_of_points_of_percentage_and_one_image_at_least():
    assert [images_of(points, 360) for points in (1, 2, 3)] == [3, 7, 10]
    assert images_of(1, 1000) == 10 and images_of(1, 20) == 1


def judged(*runs: int) -> tuple[list[bool], int]:
    """Whether 100 expected within 3 holds, and how many runs it took."""
    done = []

    def counts(number: int) -> dict[str, int]:
        done.append(number)
        return {"square": runs[number]}

    return [row.holds for row in judge([Stage("square", 100, 3)], "net", counts)], len(done)


def test_a_run_on_the_edge_is_judged_by_the_mean_of_three_seeds():
    assert judged(103) == ([True], 1) and judged(97) == ([True], 1)
    assert judged(104, 101, 103) == ([True], 3)
    assert judged(104, 105, 103) == ([False], 3)
    assert judged(107) == ([False], 1), "far off is no matter of seeds"


def test_a_stored_count_that_is_not_ours_fails(own, monkeypatch):
    shorten(monkeypatch, SHORT)
    for file in own.glob("*_smooth_*"):
        file.unlink()
    name = "aa_rounded_Linf_sequential_seed0.npz"
    spoil(own, name, robust_after_apgd_ce=flipped(5))
    assert failing(own, ("attacks",)) == ["rounded Linf sequential seed0: robust to apgd-ce"]


def find_nothing(logits_of, x, *batch):
    return nothing_found(x)


WRONG = {
    "square": (lambda patch: replace_attack(patch, "square", find_nothing), "aa_rounded_Linf_seq*"),
    "fab-t": (lambda patch: replace_attack(patch, "fab-t", find_nothing), "aa_smooth_Linf_ind*"),
    "apgd-ce": (lambda patch: patch.setattr("fastarat.attacks.apgd.MOMENTUM", 0.3), "trace_smooth_Linf*"),
    "cw20": (
        lambda patch: patch.setattr("fastarat.verification.nets.pgd", lambda settings, f, x, start, y: start),
        "pgd_smooth_L2*",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_engine_that_is_wrong_fails(own, monkeypatch, name):
    shorten(monkeypatch, SHORT)
    spoil_engine, kept = WRONG[name]
    spoil_engine(monkeypatch)
    for file in set(own.glob("*_*_*.npz")) - set(own.glob(kept)):
        file.unlink()
    assert any(name in quantity for quantity in failing(own, ALL))


# --- what cannot be read


BAD = {
    "weights": (lambda kit: (kit / "smooth.safetensors").unlink(), "smooth.safetensors does not exist"),
    "net": (lambda kit: (kit / "arch_smooth.json").unlink(), "arch_smooth.json is missing"),
    "images": (lambda kit: (kit / "data.npz").unlink(), "data.npz does not exist"),
    "cut": (lambda kit: (kit / "data.npz").write_bytes((kit / "data.npz").read_bytes()[:900]), "data.npz is no readab"),
    "operation": (lambda kit: (kit / "arch_smooth.json").write_text('{"layers": [{"op": "conv3d"}]}'), "'conv3d'"),
    "pickle": (
        lambda kit: np.savez(kit / "trace_smooth_L2.npz", index=np.array([{}])),
        "no readable .npz file of plai",
    ),
    "entry": (lambda kit: spoil(kit, "pgd_smooth_L2.npz", noise=None), "pgd_smooth_L2.npz has no entry noise"),
    "shape": (lambda kit: spoil(kit, "pgd_smooth_L2.npz", noise=lambda x: x[:3]), r"noise is float32 \[3, 2, 6, 6\]"),
    "kind": (lambda kit: spoil(kit, "data.npz", y_test=lambda y: y * 0.5), r"y_test is float64 \[24\], expected whole"),
    "pixels": (lambda kit: spoil(kit, "data.npz", x_test=times(255)), r"x_test are no images in \[0, 1\]"),
    "size": (lambda kit: spoil(kit, "data.npz", x_test=lambda x: x[:, :1]), "arch_rounded.json takes no images"),
    "labels": (lambda kit: spoil(kit, "data.npz", y_test=lambda y: y + 9), "arch_rounded.json does not fit data.npz"),
    "index": (lambda kit: spoil(kit, "trace_smooth_L2.npz", index=lambda i: i + 99), "index is not of the 24 images"),
    "attack": (lambda kit: np.savez(kit / "aa_smooth_L2_x.npz", robust_to_fgsm=np.ones(24, bool)), "attack 'fgsm'"),
    "expected": (lambda kit: (kit / "expected.json").write_text("["), "expected.json cannot be read"),
    "radius": (lambda kit: spoil(kit, "pgd_smooth_L2.npz", eps=times(0)), "the radius of smooth_L2 is 0.0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_kit_that_is_not_whole_is_refused_in_one_line(own, capsys, kind):
    spoiled, says = BAD[kind]
    spoiled(own)
    with pytest.raises(UserError, match=says) as error:
        rows(own)
    assert "\n" not in str(error.value)
    if kind == "net":
        assert main(["verify", str(own)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_radius_comes_from_what_is_there(own):
    for file in set(own.glob("*_*_*.npz")) - set(own.glob("*_smooth_L2*")):
        file.unlink()
    (own / "expected.json").unlink()
    assert not failing(own), "from the pgd files"
    for file in own.glob("pgd_*"):
        file.unlink()
    assert not failing(own), "as far as the stored images went"


# --- the command


def test_a_directory_runs_its_files_and_its_kits(golden, made, tmp_path):
    shutil.copytree(made, tmp_path / "kit")
    shutil.copy(golden / "arat_wrn16_2.npz", tmp_path)
    found = [path.name for path, _ in parts_of(tmp_path, CPU, torch.float32, ALL)]
    assert found == ["arat_wrn16_2.npz", "kit"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds nothing to verify"):
        list(parts_of(tmp_path / "empty", CPU, torch.float32, ALL))


def test_the_command_says_what_fails_and_exits_1(own, capsys):
    assert main(["verify", str(own), "--only", "nets"]) == 0
    assert "quantities hold" in capsys.readouterr().out.splitlines()[-1]
    spoil(own, "pgd_smooth_L2.npz", clean_logits_f64=times(1.01))
    assert main(["verify", str(own), "--only", "nets", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [row["quantity"] for row in found if not row["holds"]] == ["smooth L2: clean logits f64"]
    assert all({"quantity", "error", "tolerance", "holds"} <= set(row) for row in found)


def test_nothing_to_compare_is_no_success(own, capsys):
    assert main(["verify", str(own), "--only", "units"]) == 2
    assert "holds no units: give other parts to --only" in capsys.readouterr().err


@pytest.mark.no_cover  # the kit above runs the same lines
def test_all_but_the_whole_attacks_hold_on_the_kit(kit):
    assert failing(kit) == []


@pytest.mark.slow
def test_the_whole_attacks_hold_on_the_kit(kit, capsys):
    assert main(["verify", str(kit), "--only", "attacks"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("all ")
