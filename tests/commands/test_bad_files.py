"""Files that are no model, no checkpoint or no golden vectors are named; nothing in them is ever executed."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.command_line import newest


def _cut(path, run):
    path.write_bytes((run / "model.safetensors").read_bytes()[:-100])


def _foreign_weights(path, run):
    save_file({"weight": torch.ones(2)}, path)


def _newer_weights(path, run):
    save_file(load_file(run / "model.safetensors"), path, {"fastarat": '{"format": 99}'})


def _other_bits(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (None, "does not exist"),
        (lambda path, run: path.write_text("hello"), "truncated or no safetensors"),
        (lambda path, run: path.touch(), "truncated or no safetensors"),
        (_cut, "truncated or no safetensors"),
        (_foreign_weights, "no fastarat description"),
        (_newer_weights, "newer fastarat"),
        (lambda path, run: path.mkdir(), "no run directory"),
    ],
    ids=["missing", "text", "empty", "cut", "foreign", "newer", "directory"],
)
@pytest.mark.parametrize("command", ["eval", "export"])
def test_what_is_no_model_is_refused(fastarat, trained, tmp_path, command, make, words):
    if make:
        make(tmp_path / "model.safetensors", trained)
    result = fastarat(command, "model.safetensors")
    assert result.code == 2 and "model.safetensors" in result.error and words in result.error


def test_a_checkpoint_of_others_is_answered_with_the_ways_to_bring_it(fastarat):
    torch.save({"state_dict": {"weight": torch.ones(2)}}, "others.pt")
    error = fastarat("eval", "others.pt").error
    assert "others.pt" in error and "'fastarat convert'" in error and "MODULE:FUNCTION" in error


@pytest.mark.parametrize("spoil", [_cut, lambda path, run: path.write_bytes(_other_bits(path))], ids=["cut", "bits"])
def test_damaged_weights_of_a_run_are_written_anew_as_it_says(fastarat, trained, tmp_path, spoil):
    run = shutil.copytree(trained, tmp_path / "run")
    spoil(run / "model.safetensors", trained)
    error = fastarat("eval", run).error
    assert "--checkpoint last" in error and f"'fastarat train --resume {run}' writes it anew" in error
    assert fastarat("eval", run, "--checkpoint", "last", "--attack", "none").code == 0
    assert fastarat("train", "--resume", run).code == 0 and fastarat("eval", run, "--attack", "none").code == 0


def test_a_damaged_configuration_is_told_with_a_way_round_it_that_works(fastarat, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    for text in ("{", '{"epochs": 0}', '{"epoch": 3}'):
        (run / "config.json").write_text(text)
        for command in (("eval", run), ("train", "--from", run), ("report", run)):
            assert "move it away, and eval reads model.safetensors alone" in fastarat(*command).error
    (run / "config.json").unlink()
    assert fastarat("eval", run, "--attack", "none").code == 0


class Trap:
    """Unpickling one runs code: it would make the file `sprung`."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def _trap(path):
    torch.save({"fastarat_checkpoint": 1, "model": Trap()}, path)


def _bare_trap(path):
    path.write_bytes(pickle.dumps({"fastarat_checkpoint": 1, "model": Trap()}, protocol=2))


BROKEN_CHECKPOINTS = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "truncated"),
    "foreign": (lambda path: torch.save({"weights": torch.ones(2)}, path), "no fastarat checkpoint"),
    "of a list": (lambda path: torch.save([torch.ones(2)], path), "no fastarat checkpoint"),
    "an object": (_trap, "more than tensors"),
    "a pickle": (_bare_trap, "more than tensors"),
    "newer": (lambda path: torch.save({"fastarat_checkpoint": 99}, path), "format 99"),
    "incomplete": (lambda path: torch.save({"fastarat_checkpoint": 1, "model": {}}, path), "step-000000008.pt"),
}


@pytest.mark.parametrize("kind", BROKEN_CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_named_and_never_executed(fastarat, trained, tmp_path, kind):
    run = shutil.copytree(trained, tmp_path / "run")
    spoil, words = BROKEN_CHECKPOINTS[kind]
    spoil(newest(run))
    for command in (
        ("train", "--resume", run),
        ("eval", run, "--checkpoint", "last"),
        ("export", run, "--branch=clean"),
    ):
        result = fastarat(*command)
        assert result.code == 2 and str(newest(run)) in result.error and words in result.error
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("spoil", [_trap, _bare_trap], ids=["an object", "a pickle"])
def test_convert_executes_nothing_either(fastarat, tmp_path, spoil):
    spoil(tmp_path / "published.pt")
    result = fastarat("convert", "published.pt", "--out", "run")
    assert result.code == 2 and "more than tensors" in result.error
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "run").exists()


def test_verify_refuses_what_it_cannot_read(fastarat, tmp_path):
    assert "does not exist" in fastarat("verify", "missing.npz").error
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "foreign.npz", a=np.ones(2))
    np.savez(tmp_path / "object.npz", salt=np.array([Trap()]))
    for name in ("text", "foreign", "object"):
        result = fastarat("verify", f"{name}.npz")
        assert result.code == 2 and f"{name}.npz" in result.error and "allow_pickle" not in result.error
    assert not (tmp_path / "sprung").exists()


@pytest.mark.no_cover  # what it runs is counted by others
def test_verify_finds_a_cut_file_and_a_single_changed_number(fastarat, golden, tmp_path):
    whole = (golden / "arat_wrn16_2.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    assert fastarat("verify", "cut.npz").code == 2
    with np.load(golden / "arat_wrn16_2.npz", allow_pickle=False) as file:
        vectors = {key: file[key] for key in file.files}
    vectors["eval_logits_adv"][3, 5] += 0.5
    np.savez(tmp_path / "tampered.npz", **vectors)
    result = fastarat("verify", "tampered.npz", "--dtype", "float32", "--json")
    failed = [row["quantity"] for row in result.json if not row["holds"]]
    assert result.code == 1 and failed == ["eval_logits_adv"]
