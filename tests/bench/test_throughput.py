"""The ladder: what trains otherwise than the definition gets no speed, and rows say what was measured."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import tables, throughput
from bench.common.inputs import METHODS, random_images
from bench.common.rows import read_rows
from bench.ladder import ladder, turns
from bench.ladder import report as throughput_report
from bench.ladder.gate import LEARNING_RATE, TOLERANCES, batches_of, compare, definition
from bench.ladder.ladder import run_ladder
from bench.ladder.subjects import FastaratSubject, PlainForm, PlainSubject, Setting
from bench.ladder.turns import Effort
from bench.ladder.variants import NAMES, PLAIN, frozen, halved, ladder_of, with_attack
from fastarat.common import console
from fastarat.config.recipes import recipe
from fastarat.training.choices import Choices

CPU = torch.device("cpu")
EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
THROUGHPUT = {
    *("method", "model", "variant", "batch", "dtype", "attack_steps", "images_per_s", "ms_p20", "ms_p50", "ms_p80"),
    *("mfu", "bandwidth_share", "launches", "peak_memory_gb"),
}
FEW = ["published", "captured", "default"]


@pytest.fixture(scope="module", autouse=True)
def small_ladders():
    """What many ladders share, a setting's cost and its definition's results, is computed once; chunks are short."""
    found = {}

    def once(real):
        def of_setting(setting: Setting, *rest):
            key = real.__name__, setting.config, len(setting.dataset.train.labels)
            if key not in found:
                found[key] = real(setting, *rest)
            return found[key]

        return of_setting

    with pytest.MonkeyPatch.context() as patched:
        for real in (ladder.cost_of, ladder.batches_of, ladder.definition):
            patched.setattr(ladder, real.__name__, once(real))
        patched.setattr(ladder, "_free", lambda: None)  # gives back a GPU's memory
        patched.setattr(turns, "_CHUNK_SECONDS", 0.1)
        yield


def setting_of(method: str = "arat", batch: int = 16, steps: int = 3) -> Setting:
    config = recipe(f"digits-{method}")
    optimizer = replace(config.optimizer, learning_rate=LEARNING_RATE)
    attack = replace(config.attack, steps=min(steps, config.attack.steps))
    config = replace(config, batch=batch, attack=attack, optimizer=optimizer)
    return Setting(config, random_images("digits", 8 * batch), CPU)


@pytest.fixture(scope="module")
def right():
    """The definition's results of each method."""
    found = {}
    for method in ("arat", "at"):
        batches = batches_of(setting_of(method))
        found[method] = batches, definition(setting_of(method), batches)
    return found


def own(setting: Setting, dtype="fp32") -> FastaratSubject:
    return FastaratSubject(setting, Choices(dtype=dtype))


def with_method(setting: Setting, **changes) -> Setting:
    method = replace(setting.config.method, **changes)
    return replace(setting, config=replace(setting.config, method=method))


def with_rate(setting: Setting, rate: float) -> Setting:
    optimizer = replace(setting.config.optimizer, learning_rate=rate)
    return replace(setting, config=replace(setting.config, optimizer=optimizer))


@pytest.mark.parametrize("method", ["arat", "at"])
@pytest.mark.parametrize(
    "form",
    [PlainForm(True, True, False), PlainForm(channels_last=False), PlainForm(), PlainForm(half="bf16")],
    ids=["published", "resident", "channels-last", "bf16"],
)
def test_plain_pytorch_trains_as_the_definition_does(right, method, form):
    verdict = compare(PlainSubject(setting_of(method), form), *right[method], form.half or "fp32")
    assert verdict.problem is None
    assert verdict.tolerance == TOLERANCES[form.half or "fp32"]
    terms = {"adversarial_cross_entropy", *(("clean_cross_entropy", "invariance") if method == "arat" else ())}
    wanted = {"loss", *terms, "running means", "running variances", "parameters"}
    assert wanted | {"movement: shared", "length: adv"} <= verdict.errors.keys()
    assert all(f"{kind}: {name}" in verdict.errors for kind in ("full size", "free") for name in {"loss", *terms})


OTHERS = [method for method in METHODS if method not in ("arat", "at")]


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_is_held_against_its_definition_and_has_a_twin_in_plain_pytorch(method):
    setting = setting_of(method)
    batches = batches_of(setting)
    right = definition(setting, batches)
    subjects = [own(setting)]
    if method != "arrest":
        subjects += [PlainSubject(setting, PlainForm()), PlainSubject(setting, PlainForm(half="bf16"))]
    for subject, precision in zip(subjects, ("fp32", "fp32", "bf16"), strict=False):
        verdict = compare(subject, batches, right, precision)
        assert verdict.problem is None
        assert {"loss", "running means", "parameters", "full size: loss", "free: loss"} <= verdict.errors.keys()
    if setting.config.attack.steps:
        weaker = with_attack(setting, step_255=setting.config.attack.step_255 / 2)
        assert compare(own(weaker), batches, right, "fp32").problem


@pytest.mark.parametrize("method", [method for method in METHODS if method != "arrest"])
def test_plain_losses_weigh_their_terms_as_the_definition_does(method):
    """Of images far apart: a net at its beginning predicts attacked images as it does clean ones, so that the steps
    of a comparison hardly tell how much a divergence weighs."""
    setting = setting_of(method)
    if method == "lbgat":
        setting = with_method(setting, beta=6.0)
    fast, plain = own(setting), PlainSubject(setting, PlainForm())
    batch = batches_of(setting)[0]
    parts = fast.training.parts
    given = batch.x, batch.x.flip(0), batch.y
    ours, theirs = parts.method.loss(parts.model, *given)[0], plain.plain.losses(*given)["loss"]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)  # float32, some hundred operations
    ours.backward()
    theirs.backward()
    gradients = [sum(float(p.grad.norm()) ** 2 for p in every) for every in (parts.parameters, plain.plain.parameters)]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-3)


def test_a_ladder_has_no_variant_that_its_method_cannot_have():
    assert set(ladder_of(setting_of("arrest"))) == set(NAMES) - set(PLAIN)
    assert set(NAMES) - set(ladder_of(setting_of("trades"))) == {"x-frozen-bn"}
    assert set(NAMES) - set(ladder_of(setting_of("n-fgsm"))) == {"x-fewer-steps"}
    assert set(NAMES) - set(ladder_of(setting_of("standard"))) == {"x-frozen-bn", "x-fewer-steps"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["arat", "at"])
def test_fastarat_in_every_format_trains_as_its_definition_does(right, method, dtype):
    assert compare(own(setting_of(method), dtype), *right[method], dtype).problem is None


WRONG = {
    "one attack step fewer": lambda s: with_attack(s, steps=2),
    "no update of the adversarial statistics": lambda s: with_attack(s, batch_norm="frozen"),
    "the attack by running statistics": lambda s: with_attack(s, batch_norm="eval"),
    "a lost stop-gradient": lambda s: with_method(s, stop_gradient="none"),
    "a halved learning rate": lambda s: with_rate(s, LEARNING_RATE / 2),
    "a quarter of the radius": lambda s: with_attack(s, eps_255=s.config.attack.eps_255 / 4),
    "no momentum": lambda s: replace(s, config=replace(s.config, optimizer=replace(s.config.optimizer, momentum=0.0))),
}


OF_ARAT = ("at", "a lost stop-gradient")  # which AT has not


# In bf16, whose tolerances are the widest; float32 is refused in the tests of each method and of plain PyTorch.
@pytest.mark.parametrize(("method", "wrong"), [(m, w) for w in WRONG for m in ("arat", "at") if (m, w) != OF_ARAT])
def test_a_training_made_wrong_is_refused(right, wrong, method):
    setting = WRONG[wrong](setting_of(method))
    verdict = compare(own(setting, "bf16"), *right[method], "bf16")
    assert verdict.problem is not None and "off by" in verdict.problem


@pytest.mark.parametrize("form", [PlainForm(), PlainForm(half="bf16")], ids=["fp32", "bf16"])
@pytest.mark.parametrize("change", ["steps", "rate"])
def test_plain_pytorch_made_wrong_is_refused(right, form, change):
    setting = with_attack(setting_of(), steps=2) if change == "steps" else with_rate(setting_of(), LEARNING_RATE / 2)
    assert compare(PlainSubject(setting, form), *right["arat"], form.half or "fp32").problem


def test_a_loss_that_is_not_a_number_is_refused(right):
    subject = own(setting_of())
    with torch.no_grad():
        subject.training.parts.parameters[0].fill_(float("nan"))
    assert compare(subject, *right["arat"], "bf16").problem


def test_swapped_loss_weights_are_refused(right):
    subject = own(setting_of())
    subject.training.parts.method.begin_epoch(torch.tensor(0.4))
    assert "clean off by" in (compare(subject, *right["arat"], "bf16").problem or "")


def test_what_changes_the_algorithm_is_held_against_its_own_twin_and_not_the_ladders(right):
    for changed in (frozen(setting_of()), halved(setting_of())):
        batches = batches_of(changed)
        assert compare(own(changed), batches, definition(changed, batches), "fp32").problem is None
        assert compare(own(changed), *right["arat"], "fp32").problem


FROZEN_WRONG = {
    "one attack step fewer": lambda s: with_attack(s, steps=s.config.attack.steps - 1),
    "an attack that never moves": lambda s: with_attack(s, step_255=0.0),
    "half the step": lambda s: with_attack(s, step_255=s.config.attack.step_255 / 2),
    "a tenth of the radius": lambda s: with_attack(s, eps_255=s.config.attack.eps_255 / 10),
}


@pytest.fixture(scope="module")
def by_running_statistics():
    """A setting whose attack uses the running statistics, its batches and its definition's results."""
    setting = frozen(setting_of(steps=10))
    batches = batches_of(setting)
    return setting, batches, definition(setting, batches)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_attack_by_running_statistics_is_held_against_its_own_definition(by_running_statistics, dtype):
    setting, batches, found = by_running_statistics
    assert compare(own(setting, dtype), batches, found, dtype).problem is None


# In bf16 as well, whose tolerances are the widest.
@pytest.mark.parametrize("wrong", FROZEN_WRONG.values(), ids=FROZEN_WRONG)
def test_a_wrong_attack_by_running_statistics_is_refused(by_running_statistics, wrong):
    setting, batches, found = by_running_statistics
    assert compare(own(wrong(setting), "bf16"), batches, found, "bf16").problem


def test_exact_agreement_is_right(right):
    batches, snapshots = right["arat"]
    assert compare(own(setting_of(), "fp64"), batches, snapshots, "fp32").problem is None


def test_every_variant_of_the_contract_is_in_the_ladder_in_its_order():
    assert list(ladder_of(setting_of())) == list(throughput.NAMES)


def rows_of(names, monkeypatch, **wrong):
    """Rows of a small ladder, in which some variants train another setting than they say."""

    def mutated(setting):
        found = ladder_of(setting)
        for name, change in wrong.items():
            build = found[name].builds[""]
            found[name] = replace(found[name], builds={"": lambda s, b=build, c=change: b(c(s))})
        return found

    monkeypatch.setattr(ladder, "ladder_of", mutated)
    return run_ladder(setting_of(batch=8), names, Effort(2, 1), 1e10, {"attack_steps": None}, lambda share: None)


def test_a_variant_made_wrong_gets_no_speed_and_no_ratio_and_the_others_do(monkeypatch):
    rows = rows_of(["channels-last", "default"], monkeypatch, default=WRONG["a halved learning rate"])
    good, bad = rows
    assert good["correct"] and good["images_per_s"] > 0
    assert not bad["correct"] and bad["error"].startswith("WRONG: ") and "length" in bad["error"]
    assert all(bad[name] is None for name in ("images_per_s", "ms_p50", "mfu", "bandwidth_share", "ratios"))
    columns, cells = throughput_report.columns_of(rows)
    assert "no speed: WRONG" in cells[1] and not any(cell.startswith("1.") for cell in cells[1])
    assert "images/s" in columns


def test_a_variant_that_fails_while_it_is_timed_is_out_and_the_others_go_on(monkeypatch):
    taken = []

    def chunk(subject, feed, setting, steps, real=turns.chunk):
        if isinstance(subject, FastaratSubject):
            taken.append(steps)
            if len(taken) == 2:
                raise RuntimeError("CUDA error: an illegal memory access\nmore lines")
        return real(subject, feed, setting, steps)

    monkeypatch.setattr(turns, "chunk", chunk)
    good, bad = rows_of(["channels-last", "default"], monkeypatch)
    assert bad["error"] == "RuntimeError: CUDA error: an illegal memory access" and bad["images_per_s"] is None
    assert good["correct"] and good["images_per_s"] > 0 and len(taken) == 2


def test_weights_that_are_not_finite_in_the_end_cost_the_speed(monkeypatch):
    def batches(self, real=FastaratSubject.batches):
        for i, batch in enumerate(real(self)):
            yield batch._replace(x=batch.x * float("nan")) if i == 5 else batch

    monkeypatch.setattr(FastaratSubject, "batches", batches)
    (row,) = rows_of(["default"], monkeypatch)
    assert "not finite" in row["error"] and row["images_per_s"] is None


def test_ratios_are_taken_turn_by_turn_and_one_that_leaves_it_open_says_so(monkeypatch):
    speeds = iter([100, 200, 100, 210, 100, 190])  # warm-up, then two turns, the second in reverse
    monkeypatch.setattr(turns, "chunk", lambda *_: ([1.0], float(next(speeds))))
    published, default = rows_of(["published", "default"], monkeypatch)
    # Turns: published 100, default 210; then default 100, published 190.
    assert default["ratios"]["published"] == {"low": 100 / 190, "median": (2.1 + 100 / 190) / 2, "high": 2.1}
    assert published["ratios"]["published"] == {"low": 1, "median": 1, "high": 1}
    assert throughput_report.ratio(default["ratios"]["published"]) == "unresolved (0.53-2.10)"
    assert throughput_report.ratio({"low": 1.9, "median": 2.0, "high": 2.1}) == "2.00 (1.90-2.10)"
    assert throughput_report.ratio({"low": 0.7, "median": 0.8, "high": 0.9}) == "0.80 (0.70-0.90)"


def test_sigterm_ends_the_building_and_what_is_ready_is_timed(monkeypatch):
    def compare(subject, *rest, real=ladder.compare):
        if isinstance(subject, FastaratSubject):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(subject, *rest)

    monkeypatch.setattr(ladder, "compare", compare)
    (row,) = rows_of(["channels-last", "default"], monkeypatch)
    assert row["variant"] == "channels-last" and row["images_per_s"] > 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_of_several_forms_the_fastest_counts_and_what_is_wrong_with_the_others_is_kept(monkeypatch):
    def several(setting):
        found = ladder_of(setting)
        build = found["default"].builds[""]

        def fails(setting):
            raise RuntimeError("no such mode")

        builds = {"slow": lambda s: build(with_attack(s, steps=9)), "right": build, "fails": fails}
        return found | {"default": replace(found["default"], builds=builds)}

    monkeypatch.setattr(ladder, "ladder_of", several)
    (row,) = run_ladder(setting_of(batch=8), ["default"], Effort(2, 1), 1e10, {}, lambda share: None)
    assert row["correct"] and row["compile_mode"] == "right" and row["images_per_s"] > 0
    assert row["modes"]["slow"].startswith("WRONG") and row["modes"]["fails"] == "RuntimeError: no such mode"


def test_the_headline_tells_the_fastest_default_of_one_ladder_and_of_several_how_many_have_a_speed():
    def row(variant, batch, speed, ratios, method="arat"):
        keys = {"model": "resnet18", "method": method, "variant": variant}
        return {**keys, "batch": batch, "images_per_s": speed, "ratios": ratios}

    published = {"low": 6.7, "median": 6.894, "high": 7.0}
    strong = {"low": 0.9, "median": 1.05, "high": 1.2}
    rows = [row("published", 128, 1900.0, {}), row("strong", 128, 14000.0, {}), row("default", 256, 9.0, {})]
    rows += [row("default", 512, None, {}), row("default", 128, 13100.0, {"published": published, "strong": strong})]
    text = "default 13,100 images/s at batch 128, 6.89x published, not resolved from strong"
    assert throughput_report.headline(rows) == text
    assert throughput_report.headline(rows[:2]) == ""
    assert throughput_report.headline([*rows, row("default", 8, 1.0, {}, "at")]) == "5 of 6 variants have a speed"


def test_ladders_are_in_their_order_and_the_newest_first():
    def row(variant, date, commit="a", speed=1.0):
        keys = {"model": "tiny", "method": "at", "batch": 8, "dataset": "random", "gpu": None, "commit": commit}
        return {
            **keys,
            "variant": variant,
            "date": date,
            "images_per_s": speed,
            "config": {"benchmark": {"attack_steps": 2}},
        }

    rows = [row("default", "1"), row("resident", "2"), row("default", "3", speed=2.0), row("default", "4", "b")]
    new, old = throughput_report.ladders(rows).values()
    assert [r["commit"] for r in new] == ["b"]
    assert [(r["variant"], r["images_per_s"]) for r in old] == [("resident", 1.0), ("default", 2.0)]


@pytest.fixture
def terminal(monkeypatch, capsys):
    """What the command prints."""
    from rich.console import Console

    for name, stderr in (("stdout", False), ("stderr", True)):
        monkeypatch.setattr(console, name, Console(stderr=stderr, soft_wrap=True, highlight=False, width=250))
    monkeypatch.setattr(throughput_report, "stdout", console.stdout)
    return capsys


@pytest.mark.slow
def test_the_smoke_ladder_writes_a_row_a_variant_and_prints_a_table(tmp_path, terminal):
    path = tmp_path / "rows.jsonl"
    arguments = ["--device", "cpu", "--smoke", "--rows", str(path), "--method", "arat", "at", "--variants", *FEW]
    assert throughput.main(arguments) == 0
    rows = list(read_rows(path))
    assert [(row["method"], row["variant"]) for row in rows] == [
        (method, name) for method in ("arat", "at") for name in sorted(FEW, key=NAMES.index)
    ]
    for row in rows:
        assert row.keys() >= EVERY | THROUGHPUT
        assert row["benchmark"] == "throughput" and row["device"] == "cpu" and row["gpu"] is None
        if row["variant"] == "captured":
            assert row["error"] == "needs a GPU" and row["images_per_s"] is None
        else:
            assert row["correct"] and row["images_per_s"] > 0 and 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
    # A share of an H200's peak says nothing of a CPU.
    assert all(row["mfu"] is None for row in rows)
    printed = terminal.readouterr().out
    assert "x published" in printed and "needs a GPU" in printed and "captured" in printed


def test_json_is_for_programs(terminal):
    assert throughput.main(["--device", "cpu", "--smoke", "--variants", "default", "--json"]) == 0
    (row,) = json.loads(terminal.readouterr().out)
    assert row["variant"] == "default"


def test_resume_skips_ladders_that_have_rows_of_this_commit(tmp_path, monkeypatch, terminal):
    path = tmp_path / "rows.jsonl"
    arguments = ["--device", "cpu", "--smoke", "--rows", str(path), "--variants", "default", "--resume"]
    monkeypatch.setattr(throughput, "commit", lambda: "abc")
    assert throughput.main(arguments) == 0
    rows = [row | {"commit": "abc"} for row in read_rows(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert throughput.main(arguments) == 0
    assert len(list(read_rows(path))) == 1
    assert "has rows of this commit" in terminal.readouterr().err
    # A row that says what was wrong is no speed: it is measured again.
    path.write_text(json.dumps(rows[0] | {"correct": False, "images_per_s": None, "error": "WRONG"}) + "\n")
    assert throughput.main(arguments) == 0
    path.write_text(json.dumps(rows[0]) + "\n")
    # Another variant is wanted: the ladder is measured anew, since ratios are of one run.
    assert throughput.main([*arguments[:-2], "default", "resident", "--resume"]) == 0
    assert len(list(read_rows(path))) == 3


def test_what_the_budget_does_not_see_is_left_out_and_said(terminal):
    assert throughput.main(["--device", "cpu", "--smoke", "--budget", "0.001"]) == 0
    found = terminal.readouterr()
    assert "left out" in found.err and "longer --budget" in found.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--variants", "strongest"], "Unknown variant 'strongest'"),
        (["--model", "resnet19"], "Did you mean 'resnet18'"),
        (["--batch", "1"], "give 2 or more"),
        (["--batch", "many"], "invalid int value"),
        (["--attack-steps", "0"], "give a number above 0"),
        (["--repeats", "1"], "one turn has no spread"),
        (["--budget", "0"], "give a number above 0"),
        (["--data", "nowhere"], "nowhere"),
        (["--rows", "/dev/null/rows"], "cannot write --rows"),
        (["--batch", "99999"], "more than the 1437 images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(flags, words, terminal):
    assert throughput.main(["--device", "cpu", "--smoke", *flags]) == 2
    found = terminal.readouterr()
    lines = found.err.strip().splitlines()
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_one_line(terminal):
    assert throughput.main(["--device", "cuda"]) == 2
    assert "this machine has no GPU" in terminal.readouterr().err


def test_a_wrong_variant_is_exit_code_1(monkeypatch, terminal):
    def broken(subject, *rest):
        raise ValueError("WRONG: loss off by 2")

    monkeypatch.setattr(ladder, "compare", broken)
    assert throughput.main(["--device", "cpu", "--smoke", "--variants", "default"]) == 1
    assert "WRONG: loss off by 2" in terminal.readouterr().out


def test_the_picture_shows_every_variant_that_has_a_speed(tmp_path, monkeypatch):
    rows = rows_of(["published", "default"], monkeypatch)
    throughput_report.picture(tmp_path / "ladder.png", rows)
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    text = tables.ladder_table(rows)
    assert text.count("\n| ") == 3 and "8 PIL workers" in text


# ---- python bench/throughput.py -------------------------------------------------------------------


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not installed"])
def test_the_file_starts_from_any_folder_with_the_package_installed_or_not(tmp_path, installed):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    flags = ["-I"]
    if not installed:  # without site, which finds the package; the libraries lie where Python is told
        environment["PYTHONPATH"] = str(Path(torch.__file__).parents[1])
        flags = ["-S"]
        code = "import importlib.util; print(importlib.util.find_spec('fastarat'))"
        found = subprocess.run([sys.executable, "-S", "-c", code], env=environment, cwd=tmp_path, capture_output=True)
        assert found.stdout == b"None\n"
    command = [sys.executable, *flags, throughput.__file__, "--help"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert "usage: bench.throughput" in done.stdout and "python bench/throughput.py --device cpu" in done.stdout
