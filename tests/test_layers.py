"""The import arrows of the house: each room knows those before it, a benchmark none other; help needs no torch."""

import subprocess
import sys

import pytest

from tests.layers import (
    ORDER,
    PACKAGE,
    ROOT,
    against_order,
    circles,
    files,
    imports,
    imports_at_once,
    module_of,
    room_of,
    within,
)

WITHOUT_TORCH = [path for path in files("fastarat") if room_of(module_of(path)) in ("config", "commands")]
WITHOUT_TORCH += [PACKAGE / "common" / f"{name}.py" for name in ("errors", "console", "files", "processes", "version")]
BENCH = [path for path in files("bench") if path.parent.name not in ("bench", "common", "campaign")]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files("kernels"), ids=name_of)
def test_kernels_know_nothing_of_the_trainer(path):
    assert not within(imports(path), "fastarat")


@pytest.mark.parametrize("path", files("fastarat"), ids=name_of)
def test_nobody_outside_imports_a_kernels_twin(path):
    assert not [name for name in imports(path) if name.startswith("fastarat_kernels.") and ".twin" in name]


def test_every_room_is_in_the_order():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_what_stands_before_it(room):
    wrong = {name_of(path): against_order(path) for path in files(f"fastarat/{room}")}
    assert wrong and not any(wrong.values()), wrong


def test_no_modules_import_one_another():
    assert circles() == []


@pytest.mark.parametrize("path", BENCH, ids=name_of)
def test_a_benchmark_knows_nothing_of_another(path):
    own = (f"bench.{path.parent.name}", "bench.common")
    others = {name for name in within(imports(path), "bench") if not any(within({name}, part) for part in own)}
    assert others <= {"bench"}, f"{name_of(path)} imports {', '.join(sorted(others))}"


@pytest.mark.parametrize("name", ["resnet.py", "wide_resnet.py"])
def test_nets_need_torch_only(name):
    names = imports(PACKAGE / "models" / name)
    assert not within(names, "fastarat") and not within(names, "fastarat_kernels")
    assert {module.partition(".")[0] for module in names} <= {"torch", "collections"}


@pytest.mark.parametrize("path", WITHOUT_TORCH, ids=name_of)
def test_settings_and_commands_do_not_import_torch_at_once(path):
    assert not within(imports_at_once(path), "torch")


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["eval", "--help"], ["recipes"]], ids=" ".join)
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
