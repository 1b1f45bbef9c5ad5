"""The house as numbers: `python -m tests.layers`; test_layers.py tests by the same functions what may import what."""

import argparse
import ast
import re
import statistics
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastarat"
ORDER = (
    *("common", "config", "models", "data", "attacks", "methods", "runs", "evaluation"),
    *("training", "analysis", "reports", "verification", "commands"),
)
LOOSE = ("__init__", "__main__", "robustbench")
"""the faces: what may import every room"""
LONGEST_FUNCTION, MOST_PARAMETERS, LONGEST_TESTS = 70, 8, 450


def files(*folders: str) -> list[Path]:
    """Every Python file in these folders of the checkout."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    """Its dotted name; a package's is that of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "kernels" else parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of fastarat in which a module lies; '' for the faces and for what is not fastarat's."""
    parts = module.split(".")
    return parts[1] if parts[0] == "fastarat" and len(parts) > 1 and parts[1] in ORDER else ""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


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
    return set(imported(list(ast.walk(tree_of(path)))))  # type: ignore[arg-type]


def imports_at_once(path: Path) -> set[str]:
    """What importing the file imports: the top level, but for `if TYPE_CHECKING`."""
    statements: list[ast.stmt] = []
    for node in tree_of(path).body:
        if isinstance(node, ast.If):
            guarded = "TYPE_CHECKING" in ast.unparse(node.test)
            statements += node.orelse if guarded else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            statements += [*node.body, *node.orelse, *(line for handler in node.handlers for line in handler.body)]
        else:
            statements.append(node)
    return set(imported(statements))


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Which of the known modules a file imports: of `from package import module` the module, and not the package."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= inside if len(inside) == len(node.names) else inside | {node.module or ""}
    return found & known


def within(names: set[str], package: str) -> set[str]:
    """Those of the names that are the package or lie in it."""
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def against_order(path: Path) -> list[str]:
    """What a file of fastarat imports from rooms that stand after its own."""
    room = room_of(module_of(path))
    if not room:
        return []
    later = ORDER[ORDER.index(room) + 1 :]
    faces = {"fastarat", *(f"fastarat.{face}" for face in LOOSE)}
    return sorted(name for name in imports(path) if room_of(name) in later or name in faces)


def circle() -> list[str]:
    """Modules each of which imports the next, the last being the first again; empty if there are none."""
    paths = {module_of(path): path for path in files("fastarat", "bench", "kernels")}
    arrows = {name: imported_modules(path, set(paths)) - {name} for name, path in paths.items()}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1][::-1]  # it goes from what is imported to what imports it
    return []


class Function(NamedTuple):
    """A function: where it stands, its lines, its parameters without self and cls, and what it is."""

    name: str
    lines: int
    parameters: int
    kind: Literal["", "Triton kernel", "torch op"] = ""
    """A kernel takes what its launch gives, an op (with its twin and what starts it) tensors one by one, as PyTorch's
    schemas have them: neither can take a dataclass."""


def functions(path: Path) -> Iterator[Function]:
    """Every function of a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            number = len([one for one in every if one.arg not in ("self", "cls")])
            lines = (node.end_lineno or 0) - node.lineno + 1
            yield Function(f"{path.relative_to(ROOT)}:{node.name}", lines, number, _kind(path, node, every))


def _kind(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef, every: list[ast.arg]) -> Any:
    if any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list):
        return "Triton kernel"
    takes_tensors = any(one.annotation and "Tensor" in ast.unparse(one.annotation) for one in every)
    return "torch op" if path.is_relative_to(ROOT / "kernels") and takes_tensors else ""


def documentation(path: Path) -> int:
    """Lines of docstrings and of nothing but a comment."""
    comments = sum(line.lstrip().startswith("#") for line in path.read_text().splitlines())
    texts = [
        node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    return comments + sum((text.end_lineno or 0) - text.lineno + 1 for text in texts)


def numbers() -> dict[str, object]:
    """The house as numbers."""
    house = files("fastarat", "bench", "kernels")
    lines = {path: len(path.read_text().splitlines()) for path in house}
    rooms = [path for path in house if path.name != "__init__.py" and "recipes" not in path.parts]
    every = [function for path in house for function in functions(path)]
    longest = max(every, key=lambda f: f.lines)
    widest = {
        kind: max((f for f in every if f.kind == kind), key=lambda f: f.parameters)
        for kind in ("", "torch op", "Triton kernel")
    }
    folders = {path.parent for path in files("fastarat")}
    return {
        "files on the top level": len(list(PACKAGE.glob("*.py"))),
        "rooms": len([path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]),
        "folders of fastarat": len(folders),
        "most files in a folder of fastarat or bench": max(
            len(list(folder.glob("*.py")))
            for folder in {path.parent for path in files("fastarat", "bench")}
            if folder.name != "recipes"
        ),
        "imports against the order": sum(len(against_order(path)) for path in files("fastarat")),
        "modules in a circle": len(set(circle())),
        "median lines a file": statistics.median(lines[path] for path in rooms),
        "files under 60 lines": sum(lines[path] < 60 for path in rooms),
        "files over 250 lines": sum(lines[path] > 250 for path in rooms),
        "longest function": f"{longest.lines} lines ({longest.name})",
        f"functions over {LONGEST_FUNCTION} lines": sum(f.lines > LONGEST_FUNCTION for f in every),
        **{
            f"longest signature{f' of a {kind}' * bool(kind)}": f"{one.parameters} ({one.name})"
            for kind, one in widest.items()
        },
        f"signatures over {MOST_PARAMETERS} but for ops and kernels": sum(
            f.parameters > MOST_PARAMETERS and not f.kind for f in every
        ),
        "lines in all": sum(lines.values()),
        "of them docstrings and comments": sum(documentation(path) for path in house),
    }


def main(args: list[str] | None = None) -> None:
    """Print the numbers, and every import against the order, and a circle."""
    argparse.ArgumentParser("tests.layers", description=__doc__).parse_args(args)
    for name, number in numbers().items():
        print(f"{name:45} {number}")
    for path in files("fastarat"):
        for name in against_order(path):
            print(f"{path.relative_to(ROOT)} imports {name}")
    if found := circle():
        print("circle:", re.sub(r"\bfastarat\.", "", " imports ".join(found)))


if __name__ == "__main__":
    main()
