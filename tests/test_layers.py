"""The import arrows of the house: each room knows those before it, a benchmark none other; help needs no torch."""

import ast
import subprocess
import sys

import pytest

from tests.layers import (
    LONGEST_FUNCTION,
    LONGEST_TESTS,
    LOOSE,
    MOST_PARAMETERS,
    ORDER,
    PACKAGE,
    ROOT,
    against_order,
    circle,
    files,
    functions,
    imports,
    imports_at_once,
    module_of,
    room_of,
    tree_of,
    within,
)

pytestmark = pytest.mark.no_cover  # reading all files runs nothing of them
WITHOUT_TORCH = [path for path in files("fastarat") if room_of(module_of(path)) in ("config", "commands")]
WITHOUT_TORCH += [PACKAGE / "common" / f"{name}.py" for name in ("errors", "console", "files", "processes", "version")]
SIGNATURES_OF_OTHERS = {
    *(
        "fastarat/robustbench.py:__init__",
        "fastarat/robustbench.py:benchmark",
        "fastarat/models/batch_norm.py:batch_norm",
        "fastarat/training/compiling/batch_norm_by_image.py:batch_norm_backward",
        "fastarat/training/compiling/weight_gradients.py:convolution_backward",
    ),
}
"""RobustBench's and torch's own"""
BENCH = [path for path in files("bench") if path.parent.name not in ("bench", "common", "campaign")]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def breaking(paths, found_in):
    """What a rule finds in each file that breaks it."""
    assert paths
    return {name_of(path): found for path in paths if (found := found_in(path))}


def test_kernels_know_nothing_of_the_trainer():
    assert breaking(files("kernels"), lambda path: within(imports(path), "fastarat")) == {}


def test_nobody_outside_imports_a_kernels_twin():
    def twins(path):
        asked_for = {node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
        return [name for name in imports(path) if name.startswith("fastarat_kernels.") and ".twin" in name] or (
            asked_for & {"twin"}
        )

    assert breaking(files("fastarat"), twins) == {}


def test_every_room_is_in_the_order():
    first = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files("fastarat")}
    assert first == {*ORDER, *LOOSE}


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_what_stands_before_it(room):
    assert breaking(files(f"fastarat/{room}"), against_order) == {}


def test_no_modules_import_one_another():
    assert circle() == []


def test_a_benchmark_knows_nothing_of_another():
    def others(path):
        own = (f"bench.{path.parent.name}", "bench.common")
        foreign = {name for name in within(imports(path), "bench") if not any(within({name}, part) for part in own)}
        return foreign - {"bench"}

    assert breaking(BENCH, others) == {}


@pytest.mark.parametrize("name", ["resnet.py", "wide_resnet.py"])
def test_nets_need_torch_only(name):
    names = imports(PACKAGE / "models" / name)
    assert not within(names, "fastarat") and not within(names, "fastarat_kernels")
    assert {module.partition(".")[0] for module in names} <= {"torch", "collections"}


def test_settings_know_no_torch_and_commands_do_not_import_it_at_once():
    assert breaking(files("fastarat/config"), lambda path: within(imports(path), "torch")) == {}
    assert breaking(WITHOUT_TORCH, lambda path: within(imports_at_once(path), "torch")) == {}


def test_a_signature_can_be_read():
    def wide(path):
        return [one for one in functions(path) if one.parameters > MOST_PARAMETERS and not one.kind]

    found = breaking(files("fastarat", "bench", "kernels"), wide)
    assert {one.name for every in found.values() for one in every} <= SIGNATURES_OF_OTHERS


def test_a_file_of_tests_has_an_end():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in files("tests")}
    assert {name: number for name, number in lines.items() if number > LONGEST_TESTS} == {}


def test_a_function_is_a_screen_long():
    def long(path):
        return [function for function in functions(path) if function.lines > LONGEST_FUNCTION]

    assert breaking(files("fastarat", "bench", "kernels"), long) == {}


WITHOUT_WORK = [["--help"], ["train", "--help"], ["eval", "--help"], ["tune", "--help"], ["recipes"]]


@pytest.mark.parametrize("args", WITHOUT_WORK, ids=" ".join)
def test_help_answers_without_torch(args):
    code = (
        "import sys; from fastarat.__main__ import main\n"
        f"try:\n    code = main({args!r})\n"
        "except SystemExit as stop:\n    code = stop.code or 0\n"
        "sys.exit(code if 'torch' not in sys.modules else 'torch was imported')"
    )
    path = f"{ROOT}:{ROOT / 'kernels'}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path, "PATH": ""}, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "fastarat" in done.stdout or "recipe" in done.stdout
