"""The import arrows of the design: what each part may know of the others, and that help needs no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastarat"
FILES = sorted(PACKAGE.rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))

FORBIDDEN = {
    "attacks": ("methods", "engine", "data", "checkpoint", "analysis", "commands"),
    "methods": ("engine", "data", "attacks", "checkpoint", "analysis", "commands"),
    "models": ("attacks", "methods", "engine", "data", "checkpoint", "analysis", "commands"),
    "data": ("engine", "methods", "models", "attacks", "checkpoint", "analysis", "commands"),
    "engine": ("analysis", "commands"),
    "analysis": ("report", "report_analysis", "report_images", "commands"),
}
WITHOUT_TORCH = [
    path
    for path in FILES
    if path.name in ("settings.py", "config.py", "cli.py", "errors.py") or path.parent.name in ("recipes", "commands")
]


def imported(nodes: list[ast.stmt]) -> Iterator[str]:
    """Full names of all modules (and of what is taken from them) that the statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrow"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(path: Path) -> set[str]:
    """Everything a file imports, wherever in it."""
    return set(imported(list(ast.walk(ast.parse(path.read_text())))))  # type: ignore[arg-type]


def imports_at_once(path: Path) -> set[str]:
    """What importing the file imports: the top level, but for `if TYPE_CHECKING`."""
    statements: list[ast.stmt] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If):
            guarded = "TYPE_CHECKING" in ast.unparse(node.test)
            statements += node.orelse if guarded else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            statements += [*node.body, *node.orelse, *(line for handler in node.handlers for line in handler.body)]
        else:
            statements.append(node)
    return set(imported(statements))


def within(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_kernels_know_nothing_of_the_trainer(path):
    assert not within(imports(path), "fastarat")


@pytest.mark.parametrize("part", FORBIDDEN)
def test_a_part_imports_only_what_lies_before_it(part):
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files
    for path in files:
        names = imports(path)
        wrong = {name for later in FORBIDDEN[part] for name in within(names, f"fastarat.{later}")}
        assert not wrong, f"{name_of(path)} imports {', '.join(sorted(wrong))}"


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
