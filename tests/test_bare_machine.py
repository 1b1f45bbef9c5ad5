"""`make test` and `make train` on a machine with nothing prepared: what can be brought is, all else is one line."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.optional import say_what_brings_them, what_brings_them

ROOT = Path(__file__).parents[1]
LIBRARIES = "libopencv-dev libturbojpeg0-dev pkg-config"

TOOLS = ("bash", "cat", "chmod", "cp", "dirname", "env", "grep", "make", "mkdir", "mktemp", "rm", "tail", "touch")

PYTHON = """#!/bin/bash
# A Python for the scripts: has what $HOME/python-has names, and makes what is asked for.
has() { grep -qxF -- "$1" "$HOME/python-has"; }
case "$*" in
    "-c import sys; print"*) grep -m1 ^3 "$HOME/python-has" || exit 1 ;;
    "-c import ensurepip, venv") has venv ;;
    "-c import virtualenv") has virtualenv ;;
    "-c import os, sysconfig"*) has headers ;;
    "-c from fastarat"*) has ffcv-that-loads ;;
    "-m pip --version") has pip ;;
    "-m venv "* | "-m virtualenv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo pip >>"$HOME/python-has" ;;
    "-m pip install "*) [[ $* =~ requirements/([a-z]+).txt ]] && has "no-${BASH_REMATCH[1]}" && exit 1; true ;;
esac || exit 1
echo "python $*" >>"$HOME/called"
"""
APT = """#!/bin/bash
program() { printf '#!/bin/bash\\n%s\\n' "$2" >"$PATH/$1" && chmod +x "$PATH/$1"; }
echo "apt-get $*" >>"$HOME/called"
[[ -e $HOME/no-network ]] && { echo "E: Unable to fetch some archives" >&2; exit 100; }
for package in "$@"; do
    case $package in
        pkg-config) program pkg-config '[[ -e $HOME/apt-${*: -1} ]]' ;;
        libopencv-dev) touch "$HOME/apt-opencv4" ;;
        libturbojpeg0-dev) touch "$HOME/apt-libturbojpeg" ;;
        g++) program g++ true ;;
        python3-dev) echo headers >>"$HOME/python-has" ;;
        python3*-venv) echo venv >>"$HOME/python-has" ;;
    esac
done
"""


class Machine:
    """A checkout's Makefile and scripts on a machine of its own, whose Python takes notes and no more."""

    def __init__(self, folder: Path):
        self.folder, self.programs = folder, folder / "programs"
        (folder / "checkout/requirements").mkdir(parents=True)
        self.programs.mkdir()
        for path in ("Makefile", "setup.py", "pyproject.toml", *(f"requirements/{p.name}" for p in files())):
            shutil.copy(ROOT / path, folder / "checkout" / path)
        for name in TOOLS:
            (self.programs / name).symlink_to(Path(shutil.which(name) or name).resolve())
        self.program("python3", PYTHON)
        self.has("3.12", "venv", "headers", "ffcv-that-loads")

    def has(self, *what: str) -> None:
        """What its Python has, from now on."""
        (self.folder / "python-has").write_text("".join(f"{line}\n" for line in what))

    def program(self, name: str, text: str = "#!/bin/bash\n") -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def run(self, *command: str, root: bool = False) -> "Done":
        """Run a command in the checkout, as root or not."""
        (self.folder / "called").write_text("")
        self.program("id", f"#!/bin/bash\necho {0 if root else 1000}\n")
        environment = {"PATH": str(self.programs), "HOME": str(self.folder)}
        done = subprocess.run(
            command, cwd=self.folder / "checkout", env=environment, capture_output=True, text=True, timeout=60
        )
        return Done(done.returncode, done.stdout, done.stderr, (self.folder / "called").read_text())

    def has_stamp(self) -> bool:
        return (self.folder / "checkout/.venv/.loaders").exists()


class Done:
    """How a command ended, what it said, and which programs it called."""

    def __init__(self, code: int, out: str, err: str, called: str):
        self.code, self.out, self.err, self.called = code, out, err, called

    @property
    def installed(self) -> list[str]:
        """The files that pip was given."""
        return [name for line in self.called.splitlines() for name in re.findall(r"requirements/(\w+)\.txt", line)]


def files() -> list[Path]:
    return sorted((ROOT / "requirements").iterdir())


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


# ---- where root and apt-get bring it ----------------------------------------------------------------


def test_root_with_apt_get_brings_the_packages_and_says_so_in_one_line(machine):
    machine.program("apt-get", APT)
    machine.has("3.12", "venv", "ffcv-that-loads")
    done = machine.run("make", "test", root=True)
    assert done.code == 0 and not done.err
    wanted = f"g++ python3-dev {LIBRARIES}"
    (line,) = [line for line in done.out.splitlines() if "apt-get" in line]
    assert line.endswith(f"apt-get install {wanted}")
    assert re.search(rf"apt-get .*install .*{re.escape(wanted)}\n", done.called)
    assert done.installed == ["lock", "dev", "ffcv", "dali"] and machine.has_stamp()
    assert "-m pytest" in done.called


def test_what_is_there_is_not_brought_again(machine):
    machine.program("apt-get", APT)
    assert machine.run("make", "test", root=True).code == 0
    done = machine.run("make", "test", root=True)
    assert done.code == 0 and not done.installed and "apt-get" not in done.called


# ---- where nothing can be brought -------------------------------------------------------------------


@pytest.mark.parametrize("way", ["not root", "no apt-get", "no network"])
def test_without_the_packages_the_tests_go_on_without_ffcv_and_say_what_would_bring_it(machine, way):
    machine.program("g++")
    if way != "no apt-get":
        machine.program("apt-get", APT)
    if way == "no network":
        (machine.folder / "no-network").touch()
    done = machine.run("make", "test", root=way != "not root")
    assert done.code == 0 and "-m pytest" in done.called
    said = done.err.splitlines()
    assert said[-1] == (
        "going on without FFCV, and the tests that need it skip: "
        f"apt-get install {LIBRARIES}, as root, then make test brings it"
    )
    assert said[:-1] == (["E: Unable to fetch some archives"] if way == "no network" else [])
    assert done.installed == ["lock", "dev", "dali"]


def test_a_later_install_brings_ffcv_with_the_next_call(machine):
    machine.program("apt-get", APT)
    assert machine.run("make", "test").code == 0 and not machine.has_stamp()
    assert machine.run("apt-get", "install", "g++", *LIBRARIES.split()).code == 0
    done = machine.run("make", "test")
    assert done.code == 0 and not done.err and "ffcv" in done.installed and machine.has_stamp()


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("no-ffcv", "without FFCV, and the tests that need it skip: it could not be built, see .venv/ffcv.log"),
        ("no-dali", "without DALI, and the tests that need it skip: it cannot be installed on this machine"),
    ],
)
def test_a_loader_that_cannot_be_installed_is_one_line_and_tried_again(machine, lacks, said):
    machine.program("apt-get", APT)
    machine.has("3.12", "venv", "headers", "ffcv-that-loads", lacks)
    for _ in range(2):
        done = machine.run("make", "test", root=True)
        assert done.code == 0 and "-m pytest" in done.called and not machine.has_stamp()
        (line,) = done.err.splitlines()
        assert said in line


def test_an_ffcv_built_for_other_libraries_is_taken_away_again(machine):
    machine.program("apt-get", APT)
    machine.has("3.12", "venv", "headers")
    done = machine.run("make", "test", root=True)
    assert done.code == 0 and "does not load" in done.err and not machine.has_stamp()
    assert "-m pip uninstall --quiet --yes ffcv" in done.called


def test_a_training_needs_neither_loader(machine):
    done = machine.run("make", "train")
    assert done.code == 0 and not done.err and done.installed == ["lock"]


def test_compiling_ahead_of_time_keeps_nothing_in_the_home(machine):
    planned = machine.run("make", "--dry-run", "aot").out
    assert f"TRITON_CACHE_DIR={machine.folder}/checkout/.venv/triton" in planned


# ---- the Python -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has", "said"),
    [
        ([], "python3 does not run, and fastarat needs Python 3.11, 3.12 or 3.13: install one and name it"),
        (["3.10", "venv"], "python3 is Python 3.10, and fastarat needs 3.11, 3.12 or 3.13: name one"),
        (["3.14", "venv"], "python3 is Python 3.14, and fastarat needs 3.11, 3.12 or 3.13: name one"),
        (["3.12"], "python3 makes no virtual environments: apt-get install python3.12-venv, as root, or name another"),
    ],
    ids=["none", "too old", "too new", "without venv"],
)
@pytest.mark.parametrize("other", ["python3.13", "python3.11"])
def test_a_python_that_will_not_do_is_one_line_that_names_one_that_does(machine, has, said, other):
    machine.has(*has)
    if other == "python3.11":
        machine.program(other)
    done = machine.run("make", "test")
    told, *rest = done.err.splitlines()
    assert done.code == 2 and told == f"{said}: make PYTHON={other}"
    assert all(line.startswith("make: ***") for line in rest)
    assert not (machine.folder / "checkout/.venv").exists()


def test_root_brings_what_debians_python_lacks(machine):
    machine.program("apt-get", APT)
    machine.has("3.12")
    done = machine.run("make", "venv", root=True)
    assert done.code == 0 and "apt-get install python3.12-venv" in done.out
    assert "-m venv --clear .venv" in done.called


def test_virtualenv_serves_as_well(machine):
    machine.has("3.12", "virtualenv")
    done = machine.run("make", "venv")
    assert done.code == 0 and "-m virtualenv --clear .venv" in done.called


def test_an_environment_that_was_cut_off_is_made_again(machine):
    assert machine.run("make", "venv").code == 0
    machine.has("3.12", "venv")  # pip is what comes last
    (machine.folder / "checkout/.venv/.run").unlink()
    assert "-m venv --clear .venv" in machine.run("make", "venv").called


# ---- the run's last lines ---------------------------------------------------------------------------


def test_the_run_ends_with_what_would_bring_the_tests_that_skipped():
    reasons = ["Skipped: FFCV is not installed"] * 3 + ["Skipped: shared/golden is not here"]
    brings = f"apt-get install {LIBRARIES}, as root, then make test"
    assert what_brings_them(reasons, LIBRARIES) == [
        f"FFCV is not installed, tests skipped: 3. What brings it: {brings}"
    ]
    assert what_brings_them(reasons[-1:], "") == []


def test_it_is_told_of_what_this_run_skipped():
    said = []
    skips = [SimpleNamespace(longrepr=("test_one.py", 3, f"Skipped: {why}")) for why in ("DALI is not installed", "-")]
    say_what_brings_them(SimpleNamespace(stats={"skipped": skips}, write_line=lambda line, **_: said.append(line)))
    assert said == ["DALI is not installed, tests skipped: 1. What brings it: make test, see .venv/dali.log"]
    say_what_brings_them(SimpleNamespace(stats={"skipped": skips[1:]}, write_line=None))


def test_the_image_and_ci_install_the_packages_that_are_asked_for():
    asked = set(re.findall(r"^needs (\S+)", (ROOT / "requirements/native.sh").read_text(), re.MULTILINE))
    installed = (ROOT / "docker/system.sh").read_text() + (ROOT / "docker/ffcv.sh").read_text()
    installed = installed.replace("build-essential", "g++")
    assert len(asked) == 5 and all(f" {package}" in installed for package in asked)
