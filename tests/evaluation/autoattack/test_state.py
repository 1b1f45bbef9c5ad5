"""An interrupted AutoAttack goes on where it was, and takes no state that is not its own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastarat.attacks.attack import Found
from fastarat.common.errors import UserError
from fastarat.common.tensors import write_tensors
from fastarat.config.evaluation import STANDARD
from tests.helpers.attacks import broken_by, replace_attack
from tests.helpers.mutants import FEW, MANY, outcomes
from tests.helpers.small_autoattack import (
    EPS,
    NORMS,
    NUM,
    Run,
    assert_same,
    claims_all,
)


class Stop(Exception):
    """The evaluation is interrupted."""


def interrupted(run: Run, calls: list, name: str, state: Path, **settings) -> None:
    """Run until the second batch of the attack `name` is under way."""

    def advance(amount: float) -> None:
        if [of for of, *_ in calls].count(name) == 2:
            raise Stop

    with pytest.raises(Stop):
        run(state=state, advance=advance, **settings)


@NORMS
def test_interrupted_in_every_attack_it_goes_on_and_ends_in_the_same_bits(whole, run, calls, tmp_path, norm):
    _, _, result, all_calls = whole(norm)
    done = 0
    for name in STANDARD:
        calls.clear()
        interrupted(run, calls, name, tmp_path / "state", norm=norm)
        done += len(calls) - 1
        assert len(list((tmp_path / "state").glob("?-*.safetensors"))) == done
    calls.clear()
    told: list[float] = []
    resumed = run(norm=norm, state=tmp_path / "state", advance=told.append)
    assert_same(resumed, result)
    assert len(calls) == len(all_calls) - done and sum(told) == pytest.approx(NUM)
    calls.clear()
    again = run(norm=norm, state=tmp_path / "state")
    assert not calls, "nothing is done twice"
    assert_same(again, result)
    assert again.seconds == resumed.seconds


def test_warnings_and_what_was_not_confirmed_survive_an_interruption(net, run, calls, tmp_path, monkeypatch):
    replace_attack(monkeypatch, "apgd-ce", claims_all(0.5))
    rounded = lambda x: net((x * 16).round() / 16)  # noqa: E731
    whole = run(rounded)
    calls.clear()
    interrupted(run, calls, "square", tmp_path, model=rounded)
    assert_same(run(rounded, state=tmp_path), whole)
    assert len(whole.unconfirmed["apgd-ce"]) > 0 and len(whole.warnings) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eps": 0.05}, "eps"),
        ({"norm": "l2", "eps": EPS["linf"]}, "norm"),
        ({"seed": 4}, "seed"),
        ({"batch": 6}, "batch"),
        ({"attacks": ("apgd-ce",)}, "attacks"),
        ({"images": torch.zeros(NUM, 1, 6, 6, dtype=torch.uint8)}, "images"),
        ({"labels": torch.ones(NUM).long()}, "labels"),
        ({"targets": 3}, "targets"),
        ({"steps": 3}, "steps"),
        ({"step": 0.1}, "step"),
        ({"searching": lambda x: x.flatten(1)[:, :10]}, "searched_apart"),
    ],
)
def test_the_state_of_another_evaluation_is_refused(run, calls, tmp_path, change, named):
    interrupted(run, calls, "apgd-ce", tmp_path)
    with pytest.raises(UserError, match=rf"belongs to another evaluation \({named}\): give the same, or another dir"):
        run(state=tmp_path, **change)


def test_the_state_of_another_model_is_refused_be_it_only_scaled(net, run, calls, tmp_path):
    interrupted(run, calls, "apgd-ce", tmp_path)
    with pytest.raises(UserError, match="belongs to another model: delete it, or give"):
        run(lambda x: 2 * net(x), state=tmp_path)
    with pytest.raises(UserError, match="belongs to another model: delete it, or give"):
        run(lambda x: net(x.detach() + 0 * x), state=tmp_path)  # says the same, and leads no attack
    # Another algorithm's roundings are no other model.
    run(lambda x: net(x) * (1 + 1e-5), state=tmp_path)


def test_a_resumed_run_takes_its_targets_from_the_first_sessions_logits(net, run, calls, tmp_path, monkeypatch):
    def attack(logits_of, x, y, rows, conditions):
        seen.append(conditions.clean_logits)
        return Found(x, y < 0, y >= 0)

    seen: list[Tensor] = []
    interrupted(run, calls, "apgd-ce", tmp_path)
    replace_attack(monkeypatch, "fab-t", attack)
    run(lambda x: net(x) * (1 + 1e-4), state=tmp_path)
    assert seen and torch.isin(torch.cat(seen), load_file(tmp_path / "clean.safetensors")["logits"]).all()


def test_a_damaged_or_foreign_directory_is_refused(run, calls, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").touch()
    (tmp_path / "foreign/.notes.tmp").write_text("precious")
    with pytest.raises(UserError, match="holds other files: give an empty directory"):
        run(state=tmp_path / "foreign")
    assert {path.name for path in (tmp_path / "foreign").iterdir()} == {"notes.txt", ".notes.tmp"}
    with pytest.raises(UserError, match="cannot use the directory"):
        run(state=tmp_path / "foreign/notes.txt")
    state = tmp_path / "state"
    interrupted(run, calls, "apgd-t", state)
    (state / "2-apgd-t-00000.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"00000.safetensors is damaged: delete it, and what it holds is done again"):
        run(state=state)
    (state / "1-apgd-ce-00000.safetensors").replace(state / "1-apgd-ce-00001.safetensors")
    with pytest.raises(UserError, match="does not fit what was done before"):
        run(state=state)
    for text in ("{", "[]"):
        (state / "autoattack.json").write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            run(state=state)


def test_what_a_killed_process_had_begun_to_write_is_removed_and_nothing_else(run, calls, tmp_path):
    (tmp_path / ".autoattack.json.fastarat-999999999-00000000.tmp").write_text("{")
    interrupted(run, calls, "apgd-ce", tmp_path)
    (tmp_path / ".1-apgd-ce-00001.safetensors.fastarat-999999999-00000000.tmp").write_bytes(b"half")
    (tmp_path / ".notes.tmp").write_text("precious")
    run(state=tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".notes.tmp"]


def with_one_more(kept: dict[str, Tensor], place: int) -> None:
    kept["broken"] = torch.cat([kept["broken"], torch.tensor([place])])
    kept["x_adv"] = torch.cat([kept["x_adv"], kept["x_adv"][:1]])


IMPOSSIBLE = {
    "an image of another batch": lambda kept: with_one_more(kept, 38),
    "an image twice": lambda kept: with_one_more(kept, int(kept["broken"][-1])),
    "an image that there is not": lambda kept: kept["broken"].__setitem__(0, -100),
    "images that are no numbers": lambda kept: kept.update(broken=kept["broken"].float()),
    "fewer adversarial images": lambda kept: kept.update(x_adv=kept["x_adv"][1:]),
    "smaller adversarial images": lambda kept: kept.update(x_adv=kept["x_adv"][..., 1:].contiguous()),
    "a pixel outside the ball": lambda kept: kept["x_adv"].view(-1)[:1].copy_(kept["x_adv"].view(-1)[:1] < 0.5),
    "a pixel above 1": lambda kept: kept["x_adv"].view(-1).__setitem__(0, 77),
    "a pixel that is no number": lambda kept: kept["x_adv"].view(-1).__setitem__(0, float("nan")),
    "found and refused": lambda kept: kept.update(unconfirmed=kept["broken"][:1].clone()),
    "undefined but not broken": lambda kept: kept.update(
        undefined=kept["rows"][~torch.isin(kept["rows"], kept["broken"])]
    ),
    "not attackable but broken": lambda kept: kept.update(not_attackable=kept["broken"].clone()),
    "not attackable of another batch": lambda kept: kept.update(not_attackable=kept["rows"][-1:] + 1),
    "one count": lambda kept: kept.update(zero_gradients=torch.tensor([1])),
    "more than all": lambda kept: kept.update(zero_gradients=torch.tensor([2, 1])),
    "three times": lambda kept: kept.update(seconds=torch.zeros(3).double()),
    "less than no time": lambda kept: kept.update(seconds=torch.tensor(-1.0).double()),
    "no times": lambda kept: kept.pop("seconds"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_kept_batch_that_no_attack_can_have_given_is_refused_though_its_checksum_is_right(run, calls, tmp_path, what):
    interrupted(run, calls, "apgd-ce", tmp_path, eps=0.1)
    [file] = tmp_path.glob("1-*")
    kept = load_file(file)
    assert len(kept["broken"]) > 1
    IMPOSSIBLE[what](kept)
    write_tensors(file, kept)
    with pytest.raises(UserError, match=f"{file.name} in .* does not fit what was done before: delete it and all lat"):
        run(state=tmp_path, eps=0.1)


@pytest.mark.parametrize("kept", [{"x": torch.zeros(1)}, {"logits": torch.zeros(3)}], ids=["no logits", "other ones"])
def test_clean_logits_that_cannot_be_are_refused(run, calls, tmp_path, kept):
    interrupted(run, calls, "apgd-ce", tmp_path)
    write_tensors(tmp_path / "clean.safetensors", kept)
    with pytest.raises(UserError, match=r"clean.safetensors in .* does not fit what was done before"):
        run(state=tmp_path)


@pytest.mark.parametrize("count", [FEW // 3, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["autoattack.json", "clean.safetensors", "1-apgd-ce-00001.safetensors"])
def test_a_damaged_state_is_refused_or_gives_the_same_result(run, tmp_path, name, count):
    def kept() -> tuple:
        result = run(state=tmp_path, attacks=("apgd-ce",))
        return broken_by(result).tolist(), result.x_adv.tolist()

    kept()
    file = tmp_path / name
    assert outcomes(file, file.read_bytes(), count, kept)["refused"] > 0.9 * count


CHILD = """
import sys
from pathlib import Path
import torch
from torch import nn
from fastarat.config.evaluation import EvaluationSettings
from fastarat.evaluation.autoattack.conduct import Conduct
from fastarat.evaluation.autoattack.driver import autoattack
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(36, 48), nn.ReLU(), nn.Linear(48, 10)).eval().requires_grad_(False)
x = torch.rand(40, 1, 6, 6)
state = Path(sys.argv[2]) if len(sys.argv) > 2 else None
settings = EvaluationSettings(norm="linf", eps=0.02, batch=10)
result = autoattack(net, x, net(x).argmax(1), settings, conduct=Conduct(state))
torch.save((result.rows, result.x_adv, result.flags), sys.argv[1])
"""


@pytest.mark.slow
def test_killed_in_each_of_the_four_attacks_it_ends_in_the_same_bits(tmp_path):
    def start(*args: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", CHILD, *map(str, args)], env={"PYTHONPATH": ":".join(sys.path)})

    state, out = tmp_path / "state", tmp_path / "killed.pt"
    for number, name in enumerate(STANDARD, 1):
        process = start(out, state)
        while not (state / f"{number}-{name}-00000.safetensors").exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not list(state.glob(f"{number + 1}-*")), "it was killed in a later attack"
    assert start(out, state).wait() == 0 and start(tmp_path / "whole.pt").wait() == 0
    killed, whole = (torch.load(tmp_path / f"{which}.pt") for which in ("killed", "whole"))
    assert torch.equal(killed[0], whole[0]) and torch.equal(killed[1], whole[1])
    assert all(torch.equal(flags, whole[2][name]) for name, flags in killed[2].items())
