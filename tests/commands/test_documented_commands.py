"""Every command that a page, a `--help`, a recipe's head or a benchmark's head shows is one that exists.

What takes a GPU, a download or minutes is parsed and checked: its flags, recipe, target or module are there. The rest
is run. A command that no check here knows fails.
"""

import argparse
import ast
import importlib
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import setuptools

import fastarat
from fastarat.__main__ import COMMANDS, main
from fastarat.commands.train import parse_arguments
from fastarat.config.recipes import names, recipe
from tests.helpers.command_line import CHECKOUT

PAGES = ("README.md", "CONTRIBUTING.md", "kernels/README.md", "docs/*.md")
COMMAND = re.compile(r"(fastarat|make|bench|python3?|docker|pip|git|ln|apt-get|nohup|[A-Z]+=\S+ \S+)( |$)")

NO_COMMANDS = ("python", "text", "bash", "yaml")


# ---- what is documented -----------------------------------------------------------------------------


def documented() -> Iterator[tuple[str, str]]:
    """(file, command), once each."""
    found: dict[str, str] = {}
    for path, commands in (*_of_pages(), *_of_python(), *_of_the_image()):
        for command in commands:
            found.setdefault(command, str(path.relative_to(CHECKOUT)))
    return ((path, command) for command, path in found.items())


def pages() -> list[Path]:
    """Every page for people."""
    return [path for pattern in PAGES for path in sorted(CHECKOUT.glob(pattern))]


def _of_pages() -> Iterator[tuple[Path, list[str]]]:
    """Every line of a block, and what begins as a command in the text; Python and plain text are not for a shell, and
    the scripts and files of docs/cluster.md have a test of their own."""
    for path in pages():
        # Parts are text, a block's language, its lines, text, …
        parts = re.split(r"^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        blocks = [lines for of, lines in zip(parts[1::3], parts[2::3], strict=True) if of not in NO_COMMANDS]
        text = "\n".join(parts[::3])
        indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
        spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
        yield path, [line for block in blocks for line in block.splitlines() if line.strip()]
        yield path, [line for line in (*indented, *spans) if COMMAND.match(line)]


def _of_python() -> Iterator[tuple[Path, list[str]]]:
    """What stands in a line of its own in the heads of modules, and the examples that `--help` shows."""
    heads = ("bench/*.py", "bench/*/*.py", "fastarat/config/recipes/*.py", "kernels/fastarat_kernels/aot.py")
    for path in (path for pattern in heads for path in sorted(CHECKOUT.glob(pattern))):
        head = ast.get_docstring(ast.parse(path.read_text())) or ""
        yield path, re.findall(r"^ *((?:fastarat|python) .*)$", head.partition("\n")[2], re.MULTILINE)
    for path in (CHECKOUT / "fastarat/__main__.py", *sorted(CHECKOUT.glob("fastarat/commands/**/*.py"))):
        yield path, re.findall(r"[Ff]or example: (fastarat [^\n\"]*)", path.read_text())


def _of_the_image() -> Iterator[tuple[Path, list[str]]]:
    path = CHECKOUT / "Dockerfile"
    yield path, re.findall(r"^# (docker .*)$", path.read_text(), re.MULTILINE)


FOUND = list(documented())


def test_every_place_has_commands():
    places = {place for place, _ in FOUND}
    tasks = {f"docs/{name}.md" for name in ("training", "data", "evaluation", "verification", "installation", "speed")}
    assert {"README.md", "CONTRIBUTING.md", "kernels/README.md", "Dockerfile"} | tasks <= places
    recipes = {f"fastarat/config/recipes/{name.replace('-', '_')}.py" for name in names()}
    # The teacher of two recipes is trained by the command of a third.
    assert recipes <= places
    examples = [command for place, command in FOUND if place.startswith("fastarat/commands/")]
    assert len(examples) >= 12
    assert {
        "bench/throughput.py",
        "bench/robustness/__main__.py",
        "bench/campaign/__main__.py",
        "bench/kernels/__main__.py",
    } <= places
    assert sum(place.startswith(("README.md", "docs/")) for place, _ in FOUND) >= 60
    assert "python bench/throughput.py" in {" ".join(command.split()[:2]) for _, command in FOUND}


# ---- that it works ----------------------------------------------------------------------------------


class Parsed(BaseException):
    """Ends a command once its flags are read; no error, so that nothing takes it for one."""


@pytest.fixture
def only_parse(monkeypatch) -> None:
    """Let every command line end with `Parsed` where its work would begin."""
    of_argparse = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, *args: Any) -> None:
        of_argparse(parser, *args)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    names = (
        "analyze",
        "compare",
        "convert",
        "data",
        "doctor",
        "evaluate",
        "export",
        "recipes",
        "report",
        "submit",
        "tune",
        "verify",
        "watch",
    )
    for name in names:
        module = importlib.import_module(f"fastarat.commands.{name}")

        def parse(*args: Any, real: Callable = module.parse, **settings: Any) -> None:
            real(*args, **settings)
            raise Parsed

        monkeypatch.setattr(module, "parse", parse)


RUN = {
    "fastarat recipes",
    "fastarat recipes cifar10-resnet18-arat",
    "fastarat data list",
    "fastarat data info digits",
    "fastarat doctor",
}
"""What takes a moment and nothing that is not here."""


@pytest.mark.parametrize("command", [command for _, command in FOUND if command.partition("  #")[0].strip() in RUN])
def test_a_documented_command_that_takes_a_moment_runs(fastarat, command):
    result = fastarat(*shlex.split(command, comments=True)[1:])
    assert result.code == 0 and result.out and not result.err


@pytest.mark.parametrize(("place", "command"), FOUND, ids=[f"{place}: {command}" for place, command in FOUND])
def test_a_documented_command_exists(only_parse, one_epoch, working_directory, place, command):
    shutil.copytree(one_epoch, working_directory / "runs/NAME")
    check(command)


def check(command: str) -> None:
    """Fail if a command as it is written is none; … and capitals stand for what a user fills in."""
    command = re.sub(r"\$\([^)]*\)", "VALUE", command)
    command = re.sub(r"(?<= )\[([^]]*?)( …)?\]", r"\1", command)  # what may be left out
    for part in command.split(" && "):
        program, *args = shlex.split(part, comments=True)
        while "=" in program:  # a variable that the shell sets
            program, *args = args
        assert program in PROGRAMS, f"nothing here can tell whether this is right: {part}"
        PROGRAMS[program](args)


def is_parsed(main: Callable[[list[str]], int], args: list[str]) -> None:
    """Fail if these flags are not understood."""
    with pytest.raises(Parsed):
        main(args)


def _fastarat(args: list[str]) -> None:
    name, *rest = args
    assert name in COMMANDS
    if name == "train" and len(rest) == 1:
        recipe(rest[0]).checked()
    elif name == "train":
        parse_arguments(rest)
    elif rest:  # else a page speaks of the command
        is_parsed(main, args)


def _python(args: list[str]) -> None:
    if args[0] != "-m":
        assert args[0] == "bench/throughput.py", "no other file is started by its path"
        args = ["-m", "bench.throughput", *args[1:]]
    _, name, *rest = args
    assert find_spec(name)
    if name == "bench.robustness.one_training":
        recipe(rest[0])
    if name != "fastarat" and name not in WITHOUT_FLAGS:
        package = importlib.util.find_spec(name).submodule_search_locations  # type: ignore[union-attr]
        is_parsed(importlib.import_module(f"{name}.__main__" if package else name).main, rest)


WITHOUT_FLAGS = {"bench.tables", "bench.startup.in_a_process", "bench.loaders.in_a_process"}
"""The last two are started by other benchmarks, with JSON."""


def _bench(args: list[str]) -> None:
    """What the image's entry point calls `bench`."""
    name, rest = ("throughput", args) if not args or args[0].startswith("-") else (args[0], args[1:])
    assert name in re.findall(r"\w+", re.search(r"give (.*)\" >&2", (CHECKOUT / "docker/entrypoint.sh").read_text())[1])
    _python(["-m", f"bench.{name}", *(["--budget", "1", "--out", "."] if name == "campaign" else []), *rest])


def _make(args: list[str]) -> None:
    targets = [arg for arg in args if "=" not in arg]
    assert set(targets) <= set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    subprocess.run(["make", "-n", *args], cwd=CHECKOUT, capture_output=True, check=True)


def _docker(args: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    commands = parser.add_subparsers(dest="command", required=True)
    build, run = commands.add_parser("build"), commands.add_parser("run")
    build.add_argument("-t", required=True)
    build.add_argument("--build-arg")
    build.add_argument("place")
    for flag in ("--gpus", "--shm-size", "-v", "--user"):
        run.add_argument(flag)
    run.add_argument("image")
    run.add_argument("rest", nargs=argparse.REMAINDER)
    given, _ = parser.parse_known_args(args)
    if given.command == "build":
        assert given.place == "." and (CHECKOUT / "Dockerfile").exists()
        variable = (given.build_arg or "").partition("=")[0]
        assert f"\nARG {variable}=" in (CHECKOUT / "Dockerfile").read_text()
        return
    assert given.image == "fastarat"
    _bench(given.rest[1:]) if given.rest[0] == "bench" else _fastarat(given.rest)


def _pip(args: list[str]) -> None:
    metadata: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CHECKOUT)
        patch.setattr(setuptools, "setup", metadata.update)
        runpy.run_path("setup.py")
    extras = [re.fullmatch(r"\.\[(\w+)\]", arg) for arg in args[2:]]  # fastarat is on no package index
    assert args[:2] == ["install", "-e"] and all(extra and extra[1] in metadata["extras_require"] for extra in extras)


def _ln(args: list[str]) -> None:
    _, target, link = args
    place = (CHECKOUT / link).parent  # .git is no folder in every checkout: the path is followed by its text alone
    assert Path(os.path.normpath(place / target)).exists()


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "fastarat": _fastarat,
    "python": _python,
    "bench": _bench,
    "make": _make,
    "docker": _docker,
    "pip": _pip,
    "ln": _ln,
    "git": lambda args: None,  # where a clone comes from is not known here
    "cd": lambda args: None,
}


@pytest.mark.parametrize(
    "command",
    [
        "fastarat train cifar10-resnet18-arta",
        "fastarat train digits-arat --atack.steps 3",
        "fastarat eval runs/NAME --restart 5",
        "fastarat evaluate runs/NAME",
        "make tests",
        "python -m bench.throughputs",
        "python bench/robustness/__main__.py --suite digits",
        "python -m bench.robustness --sweet digits",
        "docker build -t fastarat --build-arg COMIT=X .",
        "docker run --gpus all fastarat bench ladders",
        "pip install -e '.[fvcc]'",
        "pip install 'fastarat[ffcv]'",
        "conda install fastarat",
    ],
)
def test_a_command_that_is_none_would_be_seen(only_parse, command):
    with pytest.raises(
        (AssertionError, pytest.fail.Exception, fastarat.UserError, ImportError, SystemExit, argparse.ArgumentError)
    ):
        check(command)


def test_the_python_of_the_pages_uses_what_there_is():
    blocks = [re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL) for path in pages()]
    tree = ast.parse("\n".join(code for found in blocks for code in found))
    used = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fastarat"
    ]
    assert len(used) >= 4 and all(hasattr(fastarat, name) for name in used)
