"""The ahead-of-time gate, as a command and as a function; what compiles runs in a process without the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastarat_kernels.aot import main

ROOT = Path(__file__).parents[2]

# A kernel of ours, then kernels with one fault each and a good one; run as a script, which prints the command's table
# and, a line of JSON each, its rows of the good one and those of the others.
FAULTY = """
import json, os
import torch, triton
import triton.language as tl
from dataclasses import asdict
from fastarat_kernels import aot, compilation
from fastarat_kernels.aot import check, main
from fastarat_kernels.launch import launch

@triton.jit
def copy(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i))

@triton.jit
def centre(x, y, BLOCK: tl.constexpr):
    # The whole block is needed again after its sum: more numbers a thread than it has registers.
    i = tl.arange(0, BLOCK)
    block = tl.load(x + i)
    tl.store(y + i, block - tl.sum(block, axis=0))

@triton.jit
def typo(x, y, BLOCK: tl.constexpr):
    tl.store(y, tl.load(x + nowhere))

x = torch.empty(1 << 15, device="meta")

def start(kernel, block, num_warps=1, x=x):
    return lambda: launch(kernel, (1,), x, torch.empty_like(x), num_warps=num_warps, BLOCK=block)

def refuse():
    raise ValueError("x is odd\\nand says so")

def silent():
    pass

CASES = {
    "good": [("fp32", start(copy, 256)), ("again", start(copy, 256)), ("bf16", start(copy, 256, x=x.bfloat16()))],
    "spill": [("huge", start(centre, 1 << 13))],
    "typo": [("any", start(typo, 16)), ("other", start(copy, 64))],
    "refused": [("any", refuse)],
    "silent": [("any", silent)],
    "died": [("any", start(copy, 256))],
}
of_ours = [one for one in aot.configurations("pooled_features") if "bf16" in one[0]]
aot.configurations = lambda name: of_ours
assert main(["--kernels", "pooled_features", "--arch", "90"]) == 0
good = CASES.pop("good")
aot.configurations = lambda name: good
assert main(["--kernels", "augment", "--arch", "80", "90", "--json"]) == 0
found = {}
for case, configurations in CASES.items():
    if case == "died":
        compilation.compile_ahead = lambda work: os._exit(1)
    # What spills takes long to compile.
    architectures = [90] if case == "spill" else [80, 90]
    found[case] = [asdict(row) for row in check({case: configurations}, architectures)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The script, run without the interpreter, with a compile cache of its own."""
    folder = tmp_path_factory.mktemp("aot")
    (folder / "faulty.py").write_text(FAULTY)
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = {"PYTHONPATH": str(ROOT / "kernels"), "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "faulty.py"]
    found = subprocess.run(command, env=kept | paths, cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found


@pytest.fixture(scope="module")
def report(done: subprocess.CompletedProcess[str]) -> dict:
    """What the command prints for a program, of a good kernel."""
    return json.loads(done.stdout.splitlines()[-2])


@pytest.fixture(scope="module")
def rows_of(done: subprocess.CompletedProcess[str]) -> dict[str, list[dict]]:
    """What the gate says of each faulty kernel."""
    return json.loads(done.stdout.splitlines()[-1])


def test_a_kernel_without_a_spill_passes_with_a_row_for_each_configuration(done):
    heading, *rows, last = done.stdout.splitlines()[:-2]
    assert heading.split() == ["kernel", "configuration", "arch", "registers", "shared", "spill", "seconds"]
    # Five maps, one of the three dtypes, forward and backward.
    assert len(rows) == 10 and all(row.endswith("ok") for row in rows)
    assert last.startswith("all 10 compile without a spill")
    assert "compiled 6/6" in done.stderr  # shapes that run the same machine code are compiled once


def test_a_program_may_read_the_rows(report):
    assert len(report["rows"]) == 6
    assert not report["failed"] and report["seconds"] > 0
    for row in report["rows"]:
        assert row["kernel"] == "augment.copy" and row["failure"] is None
        assert 0 < row["registers"] <= 255 and row["spill_bytes"] == 0 and row["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--arch", "75"], "argument --arch: invalid choice: '75' (choose from "),
        (["--arch"], "expected at least one argument"),
        (["--kernels", "pgdstep"], "argument --kernels: invalid choice: 'pgdstep' (choose from "),
        ([], "TRITON_INTERPRET is set, which hides the compiler: unset it"),
    ],
)
def test_wrong_input_is_one_line_that_names_the_fix(arguments, line, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    said = capsys.readouterr()
    assert exit.value.code == 2 and said.out == ""
    assert line in said.err and said.err.count("\n") == 1


def test_equal_machine_code_is_compiled_once_and_has_a_row_for_each_configuration_and_architecture(report):
    rows = report["rows"]
    assert [(row["configuration"], row["arch"]) for row in rows] == [
        (label, arch) for label in ("fp32", "again", "bf16") for arch in (80, 90)
    ]
    first, again = (rows[i]["seconds"] for i in (0, 2))
    assert first == again


def test_a_kernel_that_spills_is_refused(rows_of):
    (row,) = rows_of["spill"]
    assert row["spill_bytes"] > 0
    assert row["failure"] == f"spills {row['spill_bytes']} bytes a thread"


def test_a_kernel_that_does_not_compile_is_a_failed_row_and_the_others_are_checked(rows_of):
    typo, other = rows_of["typo"][::2]
    assert "nowhere is not defined" in typo["failure"] and "\n" not in typo["failure"]
    assert typo["registers"] is None
    assert other["kernel"] == "typo.copy" and other["failure"] is None


@pytest.mark.parametrize(
    ("case", "failure"),
    [
        ("refused", "ValueError: and says so"),
        ("silent", "ValueError: it starts no kernel"),
        ("died", "the compiler's process died, here or beside it: give --kernels one at a time"),
    ],
)
def test_whatever_else_goes_wrong_is_a_failed_row(rows_of, case, failure):
    assert [row["failure"] for row in rows_of[case]] == [failure] * 2


def test_a_failed_row_fails_the_command(monkeypatch, capsys):
    # A kernel whose module cannot be imported, as if its file were broken: nothing is left to compile.
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "fastarat_kernels.augment.triton", None)
    assert main(["--kernels", "augment", "--arch", "90"]) == 1
    said = capsys.readouterr().out
    assert "FAILED: ModuleNotFoundError" in said
    assert said.splitlines()[-1].startswith("1 of 1 FAILED")
