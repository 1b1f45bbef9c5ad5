"""Weights, checkpoints and runs' files are read for what they are; damage is seen, and nothing is built on a claim."""

import json
import struct
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastarat.common.errors import UserError
from fastarat.common.pickled import LEGACY, ZIP, read_pickled
from fastarat.common.tensors import write_tensors
from fastarat.config import load_config, recipes, to_json
from fastarat.models.registry import build_model, build_plain_model
from fastarat.runs.checkpoint import load_checkpoint, save_checkpoint
from fastarat.runs.deployed import from_checkpoint
from fastarat.runs.export import in_markdown, model_py
from fastarat.runs.metrics import is_line
from fastarat.runs.run import Run
from fastarat.runs.weights import Description, load_model, save_weights
from fastarat.training.published_checkpoint import read_published, without_wrappers
from fastarat.verification.golden import Golden
from fastarat.verification.stored_net import load_kit_model
from tests.helpers.mutants import FEW, MANY, memory_of, outcomes

COUNT = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
NAMES = tuple("0123456789")
DIGITS = Description("digits", 10, 1, (8, 8), 16, NAMES, "digits", "linf", 45.9, "arat", epoch=2)


@pytest.fixture
def weights(tmp_path) -> Path:
    """The weights of an untrained net of the digits."""
    save_weights(tmp_path / "m.safetensors", build_plain_model("digits", 10, 1), DIGITS)
    return tmp_path / "m.safetensors"


def described(path: Path, description: str) -> Path:
    """The same tensors with another description, as a program without a checksum writes them."""
    save_file(load_file(path), path, {"fastarat": description})
    return path


def summary(state: object) -> str:
    """Nested values as a text, tensors by all their bits."""
    if isinstance(state, torch.Tensor):
        return (
            f"{state.dtype} {list(state.shape)} {state.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()!r}"
        )
    if isinstance(state, dict):
        return str({key: summary(value) for key, value in state.items()})
    return str([summary(value) for value in state]) if isinstance(state, list | tuple) else repr(state)


def model_summary(path: Path) -> str:
    model, description = load_model(path)
    return summary([dict(model.state_dict()), asdict(description)])


@COUNT
def test_no_damage_to_weights_goes_unseen(weights, count):
    found = outcomes(weights, weights.read_bytes(), count, lambda: model_summary(weights))
    assert found["refused"] > 0.9 * count


@COUNT
def test_no_damage_to_a_checkpoint_goes_unseen(tmp_path, count):
    path = tmp_path / "step-000000001.pt"
    model = dict(build_model("digits", 10, 1).state_dict())
    description = {**asdict(DIGITS), "image_size": [8, 8]}
    save_checkpoint(path, {"description": description, "batch_norm": "split", "step": 1, "epoch": 1, "model": model})

    def opened() -> str:
        load_checkpoint(path)
        return summary(dict(from_checkpoint(path, "adv")[0].state_dict()))

    found = outcomes(path, path.read_bytes(), count, opened)
    assert found["refused"] > 0.8 * count


@COUNT
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_checkpoints_of_others_are_refused_in_one_line(tmp_path, count, kind):
    tensors = {f"block.{i}.weight": torch.rand(4, 4) for i in range(20)}
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=kind == "zip")
    # The other two have no checksum.
    found = outcomes(path, path.read_bytes(), count, lambda: summary(read_published(path)), may_differ=kind != "zip")
    assert found["refused"] > 0.2 * count


@COUNT
@pytest.mark.parametrize("name", ["config.json", "record.json", "metrics.jsonl"])
def test_damaged_files_of_a_run_are_refused_in_one_line(tmp_path, count, name):
    run = Run(tmp_path)
    evaluation = {"images": "test", "num_images": 9, "num_clean_images": 9, "steps": 1, "clean": 50.5, "robust": 9.25}
    evaluation["not_attackable"] = 3
    line = {"epoch": 1, "step": 4, "train": {"loss": 2.5}, "evaluation": evaluation}
    good = {
        "config.json": to_json(recipes.recipe("digits-arat")),
        "record.json": json.dumps({"sessions": [{"torch": "2", "choices": [{"what": "dtype"}]}] * 3}),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for _ in range(5)),
    }
    run.write_config(replace(recipes.recipe("digits-arat"), num_validation_images=100))
    read = {"config.json": run.config, "record.json": run.sessions, "metrics.jsonl": run.result}
    outcomes(tmp_path / name, good[name].encode(), count, lambda: repr(read[name]()), may_differ=True)


def test_the_result_of_a_run_is_that_of_the_epoch_whose_weights_it_keeps(tmp_path):
    run = Run(tmp_path)
    run.write_config(replace(recipes.recipe("digits-arat"), num_validation_images=100))
    # Robust percents of 100 images, and how many of them no attack could search; an earlier version does not say it.
    for epoch, found in enumerate(((40.0, None), (90.0, 60), (41.0, 0), (70.0, 30)), start=1):
        evaluation = {"images": "validation", "num_images": 100, "steps": 1, "clean": 95.0, "robust": found[0]}
        evaluation |= {} if found[1] is None else {"not_attackable": found[1]}
        run.log({"epoch": epoch, "step": 4 * epoch, "evaluation": evaluation})
    result = run.result()
    assert result and (result["epoch"], result["robust"]) == (3, 41.0)
    for epoch, robust in ((5, 20.0), (6, 19.0)):  # by a stronger attack
        run.log({"epoch": epoch, "step": 4 * epoch, "evaluation": {**evaluation, "steps": 50, "robust": robust}})
    result = run.result()
    assert result and (result["epoch"], result["steps"]) == (5, 50)


@pytest.mark.parametrize(
    "wrong",
    [{"num_images": 0}, {"not_attackable": "3"}, {"undefined_logits": None}, {"attack": 1}, {"num_clean_images": 0.5}],
)
def test_an_evaluation_that_says_nothing_is_no_line_of_metrics(wrong):
    evaluation = {"images": "test", "num_images": 9, "steps": 1, "clean": 50.5, "robust": 9.25}
    assert is_line({"epoch": 1, "step": 4, "evaluation": evaluation})
    assert not is_line({"epoch": 1, "step": 4, "evaluation": {**evaluation, **wrong}})


@pytest.mark.parametrize(
    ("said", "is_one"),
    [
        ({"seconds": 3, "images_per_s": 2.5, "joules": {"processors": 1.5}}, True),
        *[({name: "3"}, False) for name in ("seconds", "compile_seconds", "evaluation_seconds", "images_per_s")],
        ({"joules": {"processors": "1"}}, False),
        ({"joules": 3}, False),
        ({"train": {"loss": 1.0, "adversarial_accuracy": None}}, False),
    ],
    ids=str,
)
def test_what_a_line_of_metrics_need_not_say_it_says_as_a_number_or_is_none(said, is_one):
    assert is_line({"epoch": 1, "step": 4, "train": {"loss": 1.0}, **said}) == is_one


@COUNT
def test_damaged_golden_files_are_refused_in_one_line(tmp_path, count):
    path, n = tmp_path / "g.npz", 2
    scalars = {"arch": "digits", "salt": 7, "gamma": 1.0, "num_classes": 10, "prev_acc": 50.0}
    images = np.arange(n * 64, dtype=np.uint8).reshape(n, 8, 8, 1)
    arrays = {"images": images, "labels": np.array([1, 9], np.uint8), "noise": np.zeros((n, 1, 8, 8))}
    np.savez(path, **scalars, **arrays, eval_logits_clean=np.zeros((n, 10)))

    def opened() -> str:
        golden = Golden(path, torch.float64, torch.device("cpu"))
        return summary([dict(golden.state()), golden.x, golden.y, golden.noise])

    assert outcomes(path, path.read_bytes(), count, opened)["refused"] > 0.5 * count


@COUNT
@pytest.mark.parametrize("name", ["arch_own.json", "own.safetensors"])
def test_damaged_kits_are_refused_in_one_line(tmp_path, count, name):
    layers = [{"op": "scale", "factor": 2.0}, {"op": "conv2d", "name": "c", "stride": 2, "padding": 1}, {"op": "relu"}]
    (tmp_path / "arch_own.json").write_text(json.dumps({"layers": layers}))
    save_file({"c.weight": torch.rand(2, 1, 3, 3), "c.bias": torch.rand(2)}, tmp_path / "own.safetensors")
    good = (tmp_path / name).read_bytes()
    outcomes(tmp_path / name, good, count, lambda: repr(load_kit_model(tmp_path, "own")), may_differ=True)


def test_equal_tensors_and_texts_are_equal_files(tmp_path):
    texts = dict.fromkeys("abcdefgh", "ε")
    for name in ("one", "two"):
        write_tensors(tmp_path / name, {"w": torch.ones(2)}, texts)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert load_file(tmp_path / "one")["w"].tolist() == [1, 1]


def test_a_weight_that_changed_by_one_bit_is_seen_and_a_file_without_a_checksum_is_read(weights, tmp_path):
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="checksum does not fit"):
        load_model(tmp_path / "flipped.safetensors")
    before = model_summary(weights)
    assert model_summary(described(weights, json.dumps({"format": 1, **asdict(DIGITS)}))) == before


BAD_DESCRIPTIONS = {
    "5": "no fastarat description",
    '["format"]': "no fastarat description",
    "[" * 100_000: "cannot be read",
    "{": "cannot be read",
}
BAD_VALUES = [
    ("num_classes", -10),
    ("num_classes", "x"),
    ("num_classes", 10**10),
    ("num_classes", True),
    ("model", 5),
    ("model", "wrn-1000-100"),
    ("model", "wrn-16-2"),
    ("in_channels", [1]),
    ("in_channels", 0),
    ("eps_255", "x"),
    ("data", 5),
    ("norm", None),
    ("norm", ["linf"]),
    ("image_size", [8]),
    ("image_size", [8, 8, 8]),
    ("image_size", ['8]\n"""\nopen("PWNED", "w")\n"""', 8]),
    ("max_value", 0),
    ("classes", list(range(10))),
    ("classes", list("012")),
    ("central_share", "x"),
    ("central_share", 2.0),
    ("epoch", 10**400),
    ("branch", "both"),
    ("unheard_of", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=lambda value: repr(value)[:24])
def test_a_description_that_no_net_has_is_refused_before_memory_is_taken(weights, name, value):
    described(weights, json.dumps({"format": 1, **asdict(DIGITS), name: value}))
    with memory_of(1 << 29), pytest.raises(UserError, match=r"^[^\n]*m\.safetensors[^\n]{1,300}$"):
        load_model(weights)


@pytest.mark.parametrize("text", BAD_DESCRIPTIONS, ids=lambda text: text[:10])
def test_what_is_no_description_is_refused(weights, text):
    with pytest.raises(UserError, match=BAD_DESCRIPTIONS[text]):
        load_model(described(weights, text))


def test_a_checkpoint_that_names_a_large_net_takes_no_memory_for_it(tmp_path):
    model = dict(build_model("digits", 10, 1).state_dict())
    description = {**asdict(DIGITS), "model": "wrn-1000-100"}
    save_checkpoint(tmp_path / "x.pt", {"description": description, "batch_norm": "split", "model": model})
    with memory_of(1 << 29), pytest.raises(UserError, match="not the net that it names"):
        from_checkpoint(tmp_path / "x.pt", "adv")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", [1]),
        ("epoch", 0),
        ("step", -1),
        ("metrics", None),
        ("metrics", [{"epoch": "x"}]),
        ("fingerprint", 5),
        ("batch_norm", "both"),
        ("seconds", float("nan")),
        ("model", {"weight": 3}),
        ("description", {1: 2}),
        ("average", []),
    ],
    ids=repr,
)
def test_a_checkpoint_whose_values_no_training_has_is_refused(tmp_path, name, value):
    model, path = dict(build_model("digits", 10, 1).state_dict()), tmp_path / "x.pt"
    good = {"description": asdict(DIGITS), "batch_norm": "split", "step": 1, "epoch": 1, "model": model}
    save_checkpoint(path, {**good, name: value})
    with pytest.raises(UserError, match=r"^[^\n]*x\.pt[^\n]{1,300}$"):
        from_checkpoint(path, "adv")


def _zip(path: Path, **options: object) -> None:
    """A checkpoint, its parts put into a ZIP file anew."""
    torch.save({"weights": torch.zeros(1 << 16)}, path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", **options) as file:  # type: ignore[call-overload]
        for name, content in parts.items():
            file.writestr(name, content)


def _folder(path: Path) -> None:
    """One part is said to be a folder: torch would give what lay in memory for it."""
    torch.save({"weights": torch.zeros(64)}, path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2", 0, content.rindex(b"data/0")) + 38] = 0x10
    path.write_bytes(content)


def _doll(path: Path) -> None:
    """A small file in which one tensor is named 2^60 times."""
    state: object = torch.ones(1)
    for _ in range(60):
        state = {"a": state, "b": state}
    torch.save({"state_dict": state}, path)


ODD = {
    "compressed": lambda path: _zip(path, compression=zipfile.ZIP_DEFLATED),
    "a part that is a folder": _folder,
    "sparse": lambda path: torch.save({"w": torch.ones(3).to_sparse()}, path),
    "one number for many": lambda path: torch.save({"w": torch.ones(1).expand(10**12)}, path),
    "tar": lambda path: path.write_bytes(b"storages".ljust(512, b"\0")),
    "nothing": lambda path: path.write_bytes(b""),
    "a zip of nothing": lambda path: path.write_bytes(b"PK\5\6" + bytes(18)),
    "dots": lambda path: path.write_bytes(b"." * 10),
    "doll": _doll,
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_checkpoints_are_refused_and_take_neither_memory_nor_time(tmp_path, kind):
    ODD[kind](tmp_path / "x.pt")
    with memory_of(1 << 29), pytest.raises(UserError, match=r"^[^\n]*x\.pt[^\n]{1,200}$"):
        read_published(tmp_path / "x.pt")


def test_both_kinds_of_checkpoints_are_read(tmp_path):
    for new in (True, False):
        torch.save({"weights": torch.arange(5)}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        assert read_pickled(tmp_path / "x.pt", (ZIP, LEGACY), "")["weights"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module._orig_mod."])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_the_prefixes_of_parallel_and_compiled_nets_are_taken_off(tmp_path, prefix, kind):
    tensors, path = {f"{prefix}fc.module.weight": torch.ones(2)}, tmp_path / f"x.{kind}"
    save_file(tensors, path) if kind == "safetensors" else torch.save({"model": tensors}, path)
    assert list(read_published(path)) == ["fc.module.weight"]
    with pytest.raises(UserError, match="with and without"):
        without_wrappers({f"{prefix}a": torch.ones(1), "a": torch.ones(1)}, path)


def test_names_in_an_export_are_texts_and_nothing_else():
    names = ('"""\nimport os', "<script>alert(1)</script>", "[a](http://b) | `c`", "\ud800\x1b[2J", "---\ntitle: x")
    hostile = Description("digits", 5, 1, (8, 8), 16, names, "data", "linf", 8, "arat")
    source = model_py(hostile)
    compile(source.encode(), "model.py", "exec")
    values: dict[str, object] = {}
    exec(next(line for line in source.splitlines() if line.startswith("CLASSES")), values)
    assert values["CLASSES"] == names and "\nimport os" not in source
    for name in names:
        shown = in_markdown(name)
        assert "\n" not in shown and "<" not in shown and "\x1b" not in shown and shown.encode()
    assert in_markdown("[a](http://b) | `c`") == r"\[a\]\(http\://b\) \| \`c\`"
    assert in_markdown("tabby cat") == "tabby cat"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "cannot be read"),
        ('{"attack": {"eps_255": 1' + "0" * 400 + "}}", "cannot be read"),
        ('{"attack": {"eps_255": NaN}}', "cannot be read"),
        ('{"epochs": 0}', "epochs is 0"),
        ('{"data": 5}', "data is 5"),
    ],
    ids=["deep", "large", "NaN", "range", "type"],
)
def test_a_configuration_that_no_run_has_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        load_config(tmp_path / "config.json")


def test_a_header_of_weights_may_not_promise_what_is_not_there(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with memory_of(1 << 29), pytest.raises(UserError, match="truncated or no safetensors"):
        load_model(tmp_path / "m.safetensors")
