"""A new one of a kind is a file (a kernel: a folder) and a line in the table: a toy one is used as every other is."""

import json
from importlib import import_module
from textwrap import dedent

import pytest
import torch

from fastarat.__main__ import main
from fastarat.config import load_config
from fastarat.config.data import DECODERS
from fastarat.config.model import MODELS
from fastarat.runs.weights import load_model
from tests.helpers.command_line import metrics
from tests.helpers.small_sets import jpeg

TWO_STEPS = (
    *("--epochs", "1", "--num-train-images", "32", "--batch", "16", "--attack.steps", "1"),
    *("--evaluation.num-images", "16", "--evaluation.steps", "1"),
)

TOY_KERNEL = {
    "toy_kernels/double/__init__.py": """
        import torch

        from fastarat_kernels.torch_op import torch_op
        from toy_kernels.double import twin

        double = torch_op(twin.double, torch.empty_like)
    """,
    "toy_kernels/double/twin.py": """
        from torch import Tensor


        def double(x: Tensor) -> Tensor:
            return 2 * x
    """,
    "toy_kernels/double/triton.py": """
        from functools import partial

        import torch
        import triton
        import triton.language as tl
        from fastarat_kernels.launch import launch


        @triton.jit
        def _double(x, out, n, BLOCK: tl.constexpr):
            i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            tl.store(out + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)


        def double(x):
            out = torch.empty_like(x)
            launch(_double, (triton.cdiv(x.numel(), 256),), x, out, x.numel(), BLOCK=256)
            return out


        def configurations():
            yield "thousand", partial(double, torch.empty(1000, device="meta"))
    """,
    # Its benchmark is a file more, which is found by its name.
    "cases/double.py": """
        from bench.kernels.cases import KernelCase, variants_of
        from toy_kernels.double import double, twin


        def cases(scale, dtype):
            def inputs(draw):
                return {"x": draw.normal(scale.batch).to(dtype)}

            num_bytes, variants = {"forward": 2 * scale.batch * dtype.itemsize}, variants_of(twin.double, double)
            yield KernelCase("double", "a batch", (scale.batch,), dtype, num_bytes, inputs, twin.double, variants)
    """,
}

TOY_METHOD = """
    from dataclasses import dataclass
    from typing import Literal

    from fastarat.config.method import MethodSettings
    from fastarat.methods.method import Method, Terms
    from fastarat.models.predictions import widened
    from fastarat.models.split_batch_norm import forward


    @dataclass(frozen=True)
    class HingeConfig(MethodSettings):
        name: Literal["hinge"] = "hinge"
        margin: float = 1.0
        start: str = ""

        @property
        def starts_from(self):
            return self.start or None


    class Hinge(Method):
        metrics = ("loss", "adversarial_accuracy")

        def terms(self, model, x, x_adv, y):
            logits = widened(forward(model, x_adv, "adv", "train"))
            excess = logits - logits.gather(1, y[:, None]) + self.settings.margin
            return Terms({"hinge": excess.clamp(min=0).mean()}, {}, None, logits, {})

        def begin_training(self, model, teacher):
            Hinge.started_from = teacher
"""
TOY_MODEL = """
    from torch import Tensor, nn


    class Mill(nn.Module):
        def __init__(self, norm, num_classes: int, in_channels: int, width: int):
            super().__init__()
            self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.bn = norm(width)
            self.linear = nn.Linear(width, num_classes)
            self.aligned_layers = (self.pooled_layer,) = ("bn",)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.bn(self.conv(x), relu=True).mean((2, 3)))
"""
TOY_LOADER = """
    import numpy as np
    import torch
    from fastarat.data.images.decoding import pixels_of
    from fastarat.data.loading.decoders.decoder import Decoder


    class InProcess(Decoder):
        def __init__(self, images, workers, pin=False):
            self.images = images

        def decode(self, requests):
            for request in requests:
                parts = zip(request.index, request.boxes, strict=True)
                pixels = [pixels_of(self.images.file(i), box, request.size) for i, box in parts]
                yield torch.from_numpy(np.stack(pixels))

        def close(self):
            pass
"""
TOY_FORMAT = """
    import numpy as np

    from fastarat.common.errors import UserError
    from fastarat.data.images.dataset import Images, from_splits


    def read(path):
        # A line is a split, a class and 64 pixels from 0 to 9.
        lines = [line.split() for line in path.read_text().splitlines()]
        splits = []
        for wanted in ("train", "test"):
            rows = [(int(label), [*map(int, dots)]) for split, label, dots in lines if split == wanted]
            if not rows:
                raise UserError(f"{path} has no {wanted} images")
            pixels = np.array([dots for _, dots in rows], np.uint8).reshape(-1, 8, 8, 1)
            splits.append(Images(pixels, np.array([label for label, _ in rows])))
        return from_splits(path.stem, *splits, ("dark", "light"), 9)
"""

TOY_ATTACK = {
    "toy_attacks/darken.py": '''
        from fastarat.attacks.attack import Attack, Cost, Found


        def darken(logits_of, x, y, rows, conditions):
            """Every pixel as dark as the ball allows."""
            x_adv = (x - conditions.settings.eps).clamp(0, 1)
            return Found(x_adv, logits_of(x_adv).argmax(1) != y, y >= 0)


        DARKEN = Attack(darken, lambda settings: Cost(passes=1, forwards=1), follows_gradient=False)
    ''',
    "toy_net.py": """
        import torch
        from torch import nn


        def net():
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    """,
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the files of a package by their paths; a test may import what is in the folder, which it is given."""

    def write(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(dedent(text))
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    return write


def test_a_toy_kernel_is_compiled_ahead_and_measured_by_its_name(write, monkeypatch, capsys):
    pytest.importorskip("triton")
    from fastarat_kernels import aot
    from fastarat_kernels.launch import recording
    from fastarat_kernels.registry import KERNELS

    from bench import kernels
    from bench.kernels.__main__ import main

    folder = write(TOY_KERNEL)
    monkeypatch.setitem(KERNELS, "double", "toy_kernels.double")
    monkeypatch.setattr(kernels, "__path__", [*kernels.__path__, str(folder / "cases")])

    ((label, start),) = aot.configurations("double")
    with recording() as launches:
        start()
    assert label == "thousand" and [launch.kernel.__name__ for launch in launches] == ["_double"]
    with pytest.raises(SystemExit):
        aot.main(["--kernels", "dubble"])
    said = capsys.readouterr().err
    assert "invalid choice: 'dubble' (choose from" in said and "dual_batch_norm" in said
    assert said.rstrip().rstrip("')").endswith("double")  # quoted or not, by Python's version

    assert main(["--device", "cpu", "--smoke", "--kernels", "double", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["variant"] for row in rows} == {"eager", "twin"}
    assert all(row["kernel"] == "double" and row["correct"] and row["ms_p50"] > 0 for row in rows)

    double = import_module("toy_kernels.double.triton").double
    x = torch.randn(1000, device="cuda" if torch.cuda.is_available() else "cpu")
    assert torch.equal(double(x), 2 * x)


def test_a_toy_method_is_trained_by_a_recipe_that_names_it_and_goes_on(write, monkeypatch, capsys):
    from fastarat.config import recipes
    from fastarat.methods.registry import METHODS

    recipe = """
        from dataclasses import replace

        from fastarat.config.recipes.digits_at import RECIPE as AT
        from toy_method import HingeConfig

        RECIPE = replace(AT, method=HingeConfig())
    """
    folder = write({"toy_method.py": TOY_METHOD, "recipes/digits_hinge.py": recipe})
    toy = import_module("toy_method")
    monkeypatch.setitem(METHODS, toy.HingeConfig, toy.Hinge)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(folder / "recipes")])

    run = folder / "run"
    assert main(["train", "digits-hinge", "--out", str(run), *TWO_STEPS, "--method.margin", "2"]) == 0
    assert main(["train", "--resume", str(run), "--epochs", "2", "--method.margin", "2"]) == 0
    lines = metrics(run)
    assert [line["step"] for line in lines] == [2, 4] and all(line["train"]["loss"] > 0 for line in lines)
    config = load_config(run / "config.json")
    assert config.method == toy.HingeConfig(margin=2) and load_model(run / "model.safetensors")[1].method == "hinge"
    assert main(["train", "digits-hinge", "--out", str(folder / "from"), *TWO_STEPS, "--method.start", str(run)]) == 0
    trained, start = load_model(run / "model.safetensors")[0].state_dict(), toy.Hinge.started_from.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in trained.items())
    capsys.readouterr()
    assert main(["train", "digits-hinge", "--method.margin", "-1"]) == 2
    assert "method margin is -1.0: give a finite number of 0 or more" in capsys.readouterr().err


def test_a_toy_model_is_trained_measured_and_exported_by_its_name(write, monkeypatch, capsys):
    folder = write({"toy_model.py": TOY_MODEL})
    monkeypatch.setitem(MODELS, "mill", ("toy_model:Mill", {"width": 8}))

    run = folder / "run"
    assert main(["train", "digits-arat", "--out", str(run), *TWO_STEPS, "--model.name", "mill"]) == 0
    assert main(["eval", str(run), "--attack", "pgd", "--num-images", "8", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["clean"]["percent"] <= 100
    assert main(["export", str(run), "--out", str(folder / "exported")]) == 0
    namespace = {"__name__": "model", "__file__": str(folder / "exported/model.py")}
    exec((folder / "exported/model.py").read_text(), namespace)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(namespace["load"]()(x), load_model(run / "model.safetensors")[0](x))
    assert main(["train", "digits-arat", "--model.name", "mlil"]) == 2
    assert "did you mean 'mill'?" in capsys.readouterr().err


def test_a_toy_loader_is_trained_through_by_its_name_as_through_the_resident_one(write, monkeypatch, capsys):
    folder = write({"toy_loader.py": TOY_LOADER})
    monkeypatch.setitem(DECODERS, "in-process", "toy_loader:InProcess")
    monkeypatch.setenv("FASTARAT_DATA", str(folder / "data"))
    for i in range(48):
        path = folder / "pictures" / ("val" if i % 3 == 0 else "train") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i, 8, 8, kind="PNG"))

    data = ("--data", str(folder / "pictures"), "--num-validation-images", "0")
    for loader in ("in-process", "resident"):
        arguments = ("--out", str(folder / loader), *TWO_STEPS, *data, "--loader", loader)
        assert main(["train", "digits-arat", *arguments]) == 0
    ours, resident = ([line["train"] for line in metrics(folder / loader)] for loader in ("in-process", "resident"))
    assert ours == resident and '"name": "in-process"' in (folder / "in-process/record.json").read_text()
    capsys.readouterr()
    assert main(["train", "digits-arat", *data, "--loader", "in-procces"]) == 2
    assert "did you mean 'in-process'?" in capsys.readouterr().err


def test_a_toy_data_format_is_listed_checked_trained_on_and_evaluated_by_its_name(write, monkeypatch, capsys):
    from fastarat.data.formats.find import FORMATS, Format

    folder = write({"toy_format.py": TOY_FORMAT})
    toy = import_module("toy_format")
    monkeypatch.setitem(FORMATS, "dots", Format("dots in", (".dots",), read=toy.read))
    monkeypatch.setenv("FASTARAT_DATA", str(folder / "data"))
    lines = [f"{split} {i % 2} {str(i % 2 * 5 + i % 4) * 64}" for split in ("train", "test") for i in range(32)]
    write({"data/grey.dots": "\n".join(lines), "data/half.dots": lines[0]})

    run = folder / "run"
    assert main(["train", "digits-arat", "--data", "grey", "--out", str(run), *TWO_STEPS]) == 0
    assert main(["eval", str(run), "--attack", "pgd", "--num-images", "8"]) == 0
    capsys.readouterr()
    assert main(["data", "info", str(folder / "data/grey.dots"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["train"] == {"images": 32, "class_min": 16, "class_max": 16} and facts["max_value"] == 9
    assert main(["data", "list"]) == 0 and f"dots in {folder / 'data/grey.dots'}" in capsys.readouterr().out
    assert main(["data", "check", "half"]) == 1 and "half.dots has no test images" in capsys.readouterr().out


def test_a_toy_attack_is_one_of_eval_alone_and_before_others(write, monkeypatch, capsys):
    from fastarat.attacks.registry import ATTACKS

    monkeypatch.chdir(write(TOY_ATTACK))
    monkeypatch.setitem(ATTACKS, "darken", import_module("toy_attacks.darken").DARKEN)
    told = ("toy_net:net", "--data", "digits", "--num-images", "200", "--eps-255", "60", "--device", "cpu", "--json")

    assert main(["eval", *told, "--attack", "darken,pgd", "--steps", "2"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert list(counts) == ["clean", "darken", "pgd"] and counts["clean"] > counts["darken"] >= counts["pgd"]
    assert main(["eval", *told, "--attack", "darken"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["counts"]["darken"] == counts["darken"] and alone["complete"]
    assert main(["eval", *told, "--attack", "darkn"]) == 2
    assert "did you mean 'darken'?" in capsys.readouterr().err
