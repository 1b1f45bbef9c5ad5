"""The kernel benchmark: what is wrong gets no speed, rows are complete, tables come from rows."""

import json
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from bench.common import command
from bench.common.rows import read_rows
from bench.kernels import __main__ as kernels
from bench.kernels import augment, dual_batch_norm, pooled_features
from bench.kernels import cases as kernel_cases
from bench.kernels import report as kernel_report
from bench.kernels.cases import KernelCase, Layer, Scale, cases_of
from fastarat.common import console

# design: every row has these, and rows of this benchmark the second line's too.
EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
TIMES = {"ms_p20", "ms_p50", "ms_p80", "gb_per_s", "bandwidth_share"}
KERNEL = {"kernel", "variant", "case", "shape", "dtype", "direction", "choice", *TIMES}
SMOKE = ["--device", "cpu", "--smoke"]


@pytest.fixture(autouse=True)
def captured_console(monkeypatch):
    """The consoles write to what pytest captures."""
    for name, stderr in (("stdout", False), ("stderr", True)):
        new = Console(stderr=stderr, soft_wrap=True, highlight=False, width=250)
        monkeypatch.setattr(console, name, new)
    for module in (command, kernel_report):
        monkeypatch.setattr(module, "stdout", console.stdout)


def cases(kernel: str, dtype: torch.dtype = torch.bfloat16, smoke: bool = False) -> list[KernelCase]:
    return list(cases_of(kernel, Scale(4 if smoke else 128, smoke), dtype))


def row(kernel: str = "dual_batch_norm", case: str = "a", variant: str = "triton", **others) -> dict:
    """A row as the benchmark writes it, but for the fields that no table reads."""
    base = {"correct": True, "dtype": "bf16", "direction": "forward", "shape": [4, 4], "layer": True, "choice": variant}
    times = {"ms_p50": 1.0, "bandwidth_share": 0.5, "gb_per_s": 2000.0, "copy_gb_per_s": 4000.0}
    return {"kernel": kernel, "case": case, "variant": variant, **base, **times, "bytes": 3, "least_bytes": 3, **others}


def test_a_smoke_run_checks_times_and_writes_a_row_of_every_kernel_and_direction(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert kernels.main([*SMOKE, "--dtype", "bf16", "fp16", "fp32", "--rows", str(path)]) == 0
    rows = list(read_rows(path))
    for found in rows:
        assert found.keys() >= EVERY | KERNEL
        assert found["correct"] and found["error"] is None
        assert 0 < found["ms_p20"] <= found["ms_p50"] <= found["ms_p80"]
        assert found["gb_per_s"] > 0 and found["bandwidth_share"] > 0
        assert found["config"]["smoke"] and found["config"]["batch"] == 4 and found["dataset"] is None
        # A CPU runs no Triton kernel, and the row does not say so.
        assert found["variant"] != "triton"
    assert {found["variant"] for found in rows} == {"eager", "twin"}
    both = {("dual_batch_norm", "forward"), ("dual_batch_norm", "backward")}
    both |= {("pooled_features", "forward"), ("pooled_features", "backward")}
    once = {(kernel, "forward") for kernel in ("pgd_step", "augment")}
    assert {(found["kernel"], found["direction"]) for found in rows} == both | once
    out, err = capsys.readouterr()
    assert "eager" in out and "choice" in out and "not judged" in out
    assert "inductor: left out" in err


def test_plain_code_is_compared_in_one_graph_and_backward_passes_repeat(monkeypatch, capsys):
    """With the fast-compiling backend in inductor's place, which compiles C++ for minutes on a CPU."""
    backend = {"backend": "aot_eager", "fullgraph": True, "dynamic": False}
    monkeypatch.setattr(kernel_cases, "compiled", lambda function: torch.compile(function, **backend))
    bench = kernels.Bench(torch.device("cpu"), repeats=2, smoke=False, bandwidth=1e9, base={})
    for kernel in ("dual_batch_norm", "pgd_step"):
        rows = kernels.measure_case(cases(kernel, smoke=True)[-1], bench)
        compiled = [found for found in rows if found["variant"] == "inductor"]
        assert compiled and all(found["correct"] and found["ms_p50"] > 0 for found in compiled)
        assert {found["choice"] for found in rows} <= {"inductor", "twin"}


def test_a_wrong_kernel_gets_no_speed_and_the_exit_code_says_so(tmp_path, monkeypatch, capsys):
    right = dual_batch_norm.dual_batch_norm

    def wrong(x, *args, **settings):
        y, statistics = right(x, *args, **settings)
        return y * 1.02, statistics

    monkeypatch.setattr(dual_batch_norm, "dual_batch_norm", wrong)
    path = tmp_path / "rows.jsonl"
    assert kernels.main([*SMOKE, "--kernels", "dual_batch_norm", "--dtype", "bf16", "--rows", str(path)]) == 1
    for found in read_rows(path):
        ours = found["variant"] == "twin"
        assert found["correct"] is not ours
        assert all((found[name] is None) is ours for name in TIMES)
        assert found["choice"] is None
        if ours:
            assert "y is off by 0.02" in found["error"] and "gradient of x" in found["error"]
    out, err = capsys.readouterr()
    assert err.count("WRONG") == 6
    for line in out.splitlines():
        if "forward" in line:
            assert line.split("│")[6].strip() == "WRONG"  # the column "twin"


@pytest.mark.parametrize("term", ["weight", "bias", "residual"])
def test_a_gradient_that_is_missing_is_found_though_the_output_is_right(term, tmp_path, monkeypatch):
    right = dual_batch_norm.dual_batch_norm

    def wrong(x, weight, bias, residual=None, relu=False, **settings):
        inputs = {"weight": weight, "bias": bias, "residual": residual}
        # The same values, and half of the gradient.
        inputs[term] = inputs[term] if inputs[term] is None else inputs[term] / 2 + inputs[term].detach() / 2
        return right(x, relu=relu, **inputs, **settings)

    monkeypatch.setattr(dual_batch_norm, "dual_batch_norm", wrong)
    path = tmp_path / "rows.jsonl"
    assert kernels.main([*SMOKE, "--kernels", "dual_batch_norm", "--rows", str(path)]) == 1
    errors = [found["error"] for found in read_rows(path) if found["error"]]
    assert errors and all(error.startswith(f"gradient of {term} is off by 0.5") for error in errors)


def test_nan_is_wrong(monkeypatch, capsys):
    right = pooled_features.pooled_features
    monkeypatch.setattr(pooled_features, "pooled_features", lambda **inputs: right(**inputs) * float("nan"))
    assert kernels.main([*SMOKE, "--kernels", "pooled_features"]) == 1
    assert "off by nan" in capsys.readouterr().err


def test_a_variant_that_raises_leaves_a_row_with_the_reason_and_the_others_are_measured(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no kernel image is available\nand much more")

    monkeypatch.setattr(augment, "augment", refuse)
    path = tmp_path / "rows.jsonl"
    assert kernels.main([*SMOKE, "--kernels", "augment", "--rows", str(path)]) == 1
    eager, ours = read_rows(path)
    assert eager["correct"] and eager["ms_p50"] > 0
    assert not ours["correct"] and ours["ms_p50"] is None
    assert ours["error"] == "RuntimeError: no kernel image is available"


def test_a_case_that_cannot_be_measured_at_all_does_not_stop_the_others():
    def exhaust(**_):
        raise MemoryError("out of memory")

    broken, whole, *_ = cases("pgd_step", smoke=True)
    bench = kernels.Bench(torch.device("cpu"), repeats=1, smoke=True, bandwidth=1e9, base={})
    rows = kernels.run([replace(broken, definition=exhaust), whole], bench, None, budget=None)
    assert {found["error"] for found in rows if found["case"] == broken.label} == {"MemoryError: out of memory"}
    assert all(found["correct"] for found in rows if found["case"] == whole.label)


def test_batch_norm_bytes_are_counted_as_the_target_counts_them():
    for case in cases("dual_batch_norm"):
        map_bytes = prod(case.shape) * 2
        assert case.num_bytes == {"forward": 3 * map_bytes, "backward": 5 * map_bytes}
        more = map_bytes if "residual" in case.label else 0  # read once, and its gradient written
        assert case.least_bytes == {"forward": 3 * map_bytes + more, "backward": 5 * map_bytes + more}


def test_bytes_of_the_other_kernels():
    step, start, *_ = cases("pgd_step")
    assert step.num_bytes == {"forward": 4 * 128 * 3 * 32 * 32 * 2}
    assert start.num_bytes == {"forward": 2 * 128 * 3 * 32 * 32 * 2}
    assert cases("augment")[0].num_bytes == {"forward": 128 * 3 * 32 * 32 * (1 + 2)}
    features = 256 * 512
    pooled = cases("pooled_features")[0].num_bytes
    assert pooled == {"forward": features * (16 * 2 + 4), "backward": features * (2 * 16 * 2 + 4)}


def test_cases_are_the_layers_of_both_nets_and_maps_of_256_mb():
    layers = kernel_cases.layers_of(Scale(128))
    assert len(layers) == len(set(layers)) == 15
    assert Layer(64, 32, False, True) in layers and Layer(64, 32, True, True) in layers
    assert Layer(64, 32, False, False) not in layers  # the first stage has no projection
    assert Layer(512, 4, False, False) in layers and Layer(640, 8, False, True) in layers
    assert kernel_cases.aligned_maps(Scale(128)) == [(512, 4), (320, 16), (640, 8)]
    for dtype in kernels.DTYPES.values():
        of_dtype = cases("dual_batch_norm", dtype)
        large = [case for case in of_dtype if prod(case.shape) * dtype.itemsize >= 256 * 10**6]
        assert [case.layer for case in large] == [False, False]
        assert len(of_dtype) == 2 + 2 * len(layers)


def test_geometric_means_count_layer_shapes_that_are_right_in_both():
    rows = []
    for case, direction, inductor, ours in [
        ("a", "forward", 2.0, 1.0),
        ("b", "forward", 8.0, 1.0),
        ("a", "backward", 1.0, 1.0),
        ("wrong", "forward", 9.0, None),
    ]:
        rows.append(row(case=case, direction=direction, variant="inductor", ms_p50=inductor))
        rows.append(row(case=case, direction=direction, ms_p50=ours, correct=ours is not None))
    rows += [row(case="large", layer=False, variant=variant) for variant in ("inductor", "triton")]
    means = kernel_report.geometric_means(rows)
    assert {key: number for key, (_, number) in means.items()} == {
        ("dual_batch_norm", "forward"): 2,
        ("dual_batch_norm", "backward"): 1,
        ("dual_batch_norm", "both"): 3,
    }
    assert [round(value, 6) for value, _ in means.values()] == [4.0, 1.0, round(16 ** (1 / 3), 6)]


def test_the_table_has_a_column_a_variant_and_no_speed_for_what_is_wrong():
    rows = [row(variant=variant, ms_p50=ms) for variant, ms in (("eager", 4.0), ("inductor", 2.0), ("triton", 1.0))]
    rows += [row(case="b", variant="triton", correct=False, ms_p50=None, bandwidth_share=None, choice=None)]
    columns, cells = kernel_report.table(rows)
    assert columns[4:] == ["eager", "inductor", "triton", "inductor / triton", "% of copy", "choice"]
    assert cells[0][4:] == ["4.0000", "2.0000", "1.0000", "2.00", "50.0", "eager"]
    assert cells[1][4:] == ["-", "-", "WRONG", "-", "-", "-"]


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.80, "below the target"), (0.85, "meets the target of 85 %, below the aim"), (0.93, "meets the aim")],
)
def test_the_verdict_compares_large_maps_with_target_and_aim(share, words):
    large = {"shape": [1024, 160, 32, 32], "bandwidth_share": share}
    (line,) = kernel_report.verdicts([row(case="large", **large), row(case="small")])
    assert words in line and "2000 of 4000 GB/s" in line
    (line,) = kernel_report.verdicts([row(case="large residual", **large, least_bytes=4)])
    assert "75 % is all" in line
    (line,) = kernel_report.verdicts([row(case="large", **large | {"bandwidth_share": None}, correct=False)])
    assert line.endswith("WRONG, so no speed")


def test_a_budget_ends_in_time_with_what_was_measured(tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 10_000, 10))  # every look at the clock is 10 s later
    monkeypatch.setattr(kernels, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = [replace(case, variants={}) for case in cases("pgd_step", smoke=True)]
    bench = kernels.Bench(torch.device("cpu"), repeats=1, smoke=True, bandwidth=1e9, base={})
    kernels.run(found, bench, None, budget=45)
    assert "budget: 2 of 4 cases measured, 2 left out" in capsys.readouterr().err


def test_a_budget_that_nothing_fits_into_is_no_error(capsys):
    assert kernels.main([*SMOKE, "--kernels", "augment", "--budget", "1e-9"]) == 0
    assert "longer --budget" in capsys.readouterr().out


def test_rows_are_json_for_a_program(capsys):
    assert kernels.main([*SMOKE, "--kernels", "augment", "--json"]) == 0
    eager, twin = json.loads(capsys.readouterr().out)
    assert (eager["variant"], twin["variant"]) == ("eager", "twin")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "cuda"], "this machine has no GPU: give --device cpu"),
        (["--kernels", "pgdstep"], "did you mean 'pgd_step'?"),
        (["--dtype", "fp8"], "invalid choice: 'fp8'"),
        (["--batch", "0"], "--batch is 0: give a number above 0"),
        (["--budget", "nan"], "--budget is nan"),
        (["--repeats", "many"], "--repeats: invalid int value"),
        (["--rows", "."], "cannot write --rows .: Is a directory: give another file"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(flags, words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main(flags) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_captures_and_times_every_variant_of_every_kernel(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert kernels.main(["--device", "cuda", "--smoke", "--dtype", "bf16", "fp16", "fp32", "--rows", str(path)]) == 0
    rows = list(read_rows(path))
    assert {found["variant"] for found in rows} >= {"eager", "inductor", "triton"}
    assert all(found["correct"] and found["ms_p50"] > 0 for found in rows)
