"""What was tuned is taken up where machine, versions and shape are the same; a damaged table is left aside."""

import json
from dataclasses import replace

import fastarat_kernels
import numpy as np
import pytest

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.json_files import checksum_of
from fastarat.config.recipes import recipe
from fastarat.data.formats.prepared import write
from fastarat.data.open import open_dataset
from fastarat.training.choices import Choices
from fastarat.training.tuning import kept as module
from fastarat.training.tuning.kept import Tuned, keep, kept, key_of, tuned_choices
from fastarat.training.tuning.trial import Tried

CONFIG = recipe("digits-arat")
COMPILED = Choices(compile="compile", unroll=False)
HALF = Choices(dtype="bf16", threads=1)
TUNED = Tuned(1437, [Tried(Choices(), None, 0.1, 100.0), Tried(COMPILED, None, 1.0, 200.0, (1.9, 2.0, 2.1))])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The file in which `TUNED` was kept."""
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(module, "environment", dict.fromkeys(module._MACHINE, "the same").copy)
    monkeypatch.setattr("fastarat.training.tuning.candidates.other_threads", lambda device: [])
    place = keep(CONFIG, "cpu", TUNED)
    assert place is not None
    return place


def taken(**settings):
    """What a training with these settings takes, and what its record says of it."""
    log = ChoiceLog(quiet=True)
    return tuned_choices(replace(CONFIG, **settings), "cpu", log), {c["what"]: c["why"] for c in log.choices}


def test_the_fastest_form_is_taken_up_and_recorded(place):
    assert kept(CONFIG, "cpu") == TUNED
    form, said = taken()
    assert form == COMPILED
    assert said.keys() == {"dtype", "kernels", "compile"}
    assert "tuned on this machine, times the plainest step's speed: 2.00 (1.90-2.10)" in said["compile"]


def test_what_is_given_by_name_wins(place):
    form, said = taken(compile="eager")
    assert form == Choices() and "compile" not in said
    assert taken(dtype="bf16") == taken(dtype="fp64") == (None, {})
    assert taken(dtype="fp32", kernels="pytorch", compile="compile") == (None, {})


def test_a_short_run_does_not_wait_for_the_compiler(place):
    assert taken(epochs=1, num_train_images=64)[0] == Choices()


def test_another_shape_machine_or_number_of_processes_was_not_tuned(place, monkeypatch, capsys):
    for other in ({"batch": 32}, {"attack": replace(CONFIG.attack, steps=1)}, {"procs": 2}):
        assert taken(**other) == (None, {})
    assert capsys.readouterr().err == ""
    there = {**dict.fromkeys(module._MACHINE, "the same"), "commit": "another"}
    monkeypatch.setattr(module, "environment", there.copy)
    (place.parent / "0.json").write_text('{"key": [1]}')
    assert taken() == (None, {})
    said = "tuned with commit 'the same', now 'another': 'fastarat tune digits-arat' with these settings tunes anew"
    assert capsys.readouterr().err.count(said) == 1


def test_a_link_to_nowhere_beside_images_is_none_of_them(tmp_path):
    """As Emacs locks a file."""
    write(open_dataset("digits"), tmp_path / "set", "digits")
    before = key_of(replace(CONFIG, data=str(tmp_path / "set")), "cpu")
    (tmp_path / "set" / ".#x").symlink_to("nobody@nowhere")
    assert key_of(replace(CONFIG, data=str(tmp_path / "set")), "cpu").keys() == before.keys()


def test_what_the_speed_depends_on_tells_tables_apart(tmp_path, monkeypatch):
    data, programs = tmp_path / "images.npz", [tmp_path / "g++", tmp_path / "clang++"]
    for program in programs:
        program.touch(mode=0o755)

    def key(commit="0123456789ab", **settings):
        monkeypatch.setattr(module, "environment", lambda: dict.fromkeys(module._MACHINE, "") | {"commit": commit})
        return key_of(replace(CONFIG, **settings), "cpu")

    def with_images_of(side):
        np.savez(data, images=np.zeros((4, side, side, 1), np.uint8))
        return key(data=str(data))

    monkeypatch.setenv("CXX", str(programs[0]))
    here = key()
    assert here == key() and here["machine"]["sources"] == key()["machine"]["sources"] == ""
    assert key(augment=replace(CONFIG.augment, crop="resized", start_size=32)) != here
    assert with_images_of(8) != with_images_of(9)
    dirty = key("0123456789ab+")
    monkeypatch.setattr(fastarat_kernels, "__path__", [str(tmp_path)])
    assert dirty != key("0123456789ab+") == key("0123456789ab+") and key() == here
    assert key(None)["machine"]["sources"] == key("0123456789ab+")["machine"]["sources"] != ""
    monkeypatch.setenv("CXX", str(programs[1]))
    assert key() != here


def changed(place, **values):
    """A table of ours but for these values, with the checksum that belongs to it."""
    found = json.loads(place.read_text()) | values
    return json.dumps({**found, "checksum": checksum_of(found)})


DAMAGED = {
    "cut off": lambda place: place.read_text()[:200],
    "no JSON": lambda place: "\x00\x01",
    "of another version": lambda place: changed(place, version=99),
    "changed since": lambda place: place.read_text().replace("1437", "1438"),
    "of another": lambda place: changed(place, key={}),
    "without candidates": lambda place: changed(place, tried=[]),
    "no candidates": lambda place: changed(place, tried=[1, "x"]),
    "a speed of minus one": lambda place: changed(place, tried=[{"form": {}, "images_per_s": -1.0}]),
    "a word on kernels that does not fit": lambda place: changed(place, kernels={"augment": 1}),
    "a form that does not fit": lambda place: changed(place, tried=[{"form": {"compile": "rm -rf"}}]),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_table_is_one_notice_and_left_aside(place, content, capsys):
    place.write_text(content(place))
    assert taken(dtype="fp32", compile="eager") == (None, {})
    assert kept(CONFIG, "cpu") is None
    *_, line = said = capsys.readouterr().err.splitlines()
    assert not [text for text in said if text.startswith("tuned with")]
    assert (
        line.startswith(f"what was tuned: {place}")
        and "'fastarat tune digits-arat' with these settings makes it anew" in line
    )


def test_a_form_that_this_machine_would_not_try_is_not_taken(place):
    for form in (replace(HALF, dtype="fp16"), replace(HALF, threads=10**6), replace(COMPILED, device="cuda")):
        keep(CONFIG, "cpu", Tuned(1437, [TUNED.tried[0], Tried(form, None, 0.0, 900.0, (8.0, 9.0, 9.1))]))
        assert taken()[0] == Choices()


def test_kernels_are_left_out_where_they_are_open_and_known(place, monkeypatch):
    whole = Choices(kernels="triton")
    monkeypatch.setattr(module, "open_forms", lambda *_: [Choices(), whole])
    mixed = replace(whole, without=("augment", "fused_batch_norm@512x4x4"))
    strange = ("of another version", "fused_batch_norm@4x4")
    unknown = {replace(whole, without=("augment", name)): 9.0 for name in strange}
    speeds = {**unknown, mixed: 2.0, whole: 1.5}
    tried = [Tried(form, None, 0.1, 100.0 * speed, (speed, speed, speed)) for form, speed in speeds.items()]
    keep(CONFIG, "cpu", tuned := Tuned(1437, [TUNED.tried[0], *tried], {"augment": "left out; alone: fails"}))
    assert kept(CONFIG, "cpu") == tuned
    form, said = taken()
    assert form == mixed and said["kernels"].startswith("tuned on this machine")
    monkeypatch.setattr(module, "open_forms", lambda *_: [whole])
    assert taken(kernels="triton")[0] == whole


def test_a_table_of_before_kernels_were_tried_one_by_one_is_read(place):
    values = json.loads(place.read_text())
    del values["kernels"], values["checksum"]
    for one in values["tried"]:
        del one["form"]["without"]
    place.write_text(json.dumps({**values, "checksum": checksum_of(values)}))
    assert kept(CONFIG, "cpu") == TUNED


def test_where_nothing_can_be_written_it_is_said(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", None):
        monkeypatch.setattr(module, "cache_folder", lambda folder=folder: folder)
        assert keep(CONFIG, "cpu", TUNED) is None
        assert "what was tuned is not kept" in capsys.readouterr().err
