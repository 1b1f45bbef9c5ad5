"""A clone installs: the locks are exact and complete, and there is one version everywhere."""

import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fastarat

ROOT = Path(__file__).parents[1]
LOCK, DEV, FFCV, DALI = (ROOT / f"requirements/{name}.txt" for name in ("lock", "dev", "ffcv", "dali"))
MAKEFILE, NATIVE = (ROOT / "Makefile").read_text(), ROOT / "requirements/native.sh"
FOR_A_GPU = {"nvidia-libnvcomp-cu13"}
"""what only decoders on a GPU load"""


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    given: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # as every installer does
        patch.setattr(setuptools, "setup", given.update)
        runpy.run_path("setup.py")
    return given


def requirements(path: Path) -> list[Requirement]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


def versions(*paths: Path) -> dict[str, str]:
    """Canonical name → the one version it is pinned to."""
    pins = [pin for path in paths for pin in requirements(path)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def unmet(wanted: list[str], locked: dict[str, str]) -> list[str]:
    """The requirements that the lock lacks, or pins below their bound."""
    found = [(wish, locked.get(canonicalize_name(wish.name))) for wish in map(Requirement, wanted)]
    return [str(wish) for wish, version in found if version is None or not wish.specifier.contains(version)]


@pytest.mark.parametrize("path", [LOCK, DEV, FFCV, DALI], ids=lambda path: path.name)
def test_every_line_of_a_lock_is_exact_and_names_no_index(path):
    pins = requirements(path)
    assert [str(pin) for pin in pins if not re.fullmatch(r"==[\w.]+", str(pin.specifier))] == []
    assert [str(pin) for pin in pins if pin.url] == []
    assert len(versions(path)) == len(pins), "a name is there twice"
    assert not re.search(r"://|--\S*index|--find-links", path.read_text())


def test_all_that_a_run_requires_is_locked(metadata):
    assert unmet(metadata["install_requires"], versions(LOCK)) == []


def test_torch_is_locked_with_the_triton_it_was_built_for():
    assert versions(LOCK)["torch"] == "2.13.0"
    assert 'triton==3.7.1; sys_platform == "linux"' in LOCK.read_text().splitlines()


def test_all_development_tools_are_locked_on_top_of_a_run(metadata):
    assert "-r lock.txt" in DEV.read_text().splitlines()
    assert not versions(LOCK).keys() & versions(DEV).keys(), "pinned in both files"
    assert unmet(metadata["extras_require"]["dev"], versions(LOCK, DEV)) == []


@pytest.mark.parametrize(("extra", "path"), [("ffcv", FFCV), ("dali", DALI)])
def test_a_loader_is_locked_on_top_of_a_run(metadata, extra, path):
    others = {LOCK, DEV, FFCV, DALI} - {path}
    assert not versions(*others).keys() & versions(path).keys(), "pinned in both files"
    assert unmet(metadata["extras_require"][extra], versions(LOCK, path)) == []


@pytest.mark.parametrize("path", [FFCV, DALI], ids=lambda path: path.name)
def test_a_loader_installed_without_dependencies_has_all_that_a_cpu_needs(path):
    locked = versions(LOCK, path)
    needed = [Requirement(line) for name in versions(path) for line in installed_requirements(name)]
    wanted = [str(requirement) for requirement in needed if requirement.name not in FOR_A_GPU]
    assert wanted and unmet(wanted, locked) == []


def installed_requirements(name: str) -> list[str]:
    """What the installed package requires on this Python, its extras left out; nothing of one that is not installed,
    since the lock has it for another Python."""
    try:
        found = [Requirement(line) for line in distribution(name).requires or []]
    except PackageNotFoundError:
        return []
    found = [line for line in found if line.marker is None or line.marker.evaluate({"extra": ""})]
    return [f"{line.name}{line.specifier}" for line in found]


def test_the_loaders_are_installed_wherever_the_tests_run():
    for name in versions(FFCV, DALI).keys() - {"pyyaml", "pyyaml-ft"}:
        assert version(name) == versions(FFCV, DALI)[name]


def test_no_loader_brings_a_torch_of_its_own():
    assert not versions(FFCV, DALI).keys() & {"torch", "torchvision", "triton", "numpy"}
    rule = MAKEFILE.partition("\n.venv/.dev:")[2].partition("\ntrain:")[0]
    assert re.search(r"pip install .*--no-deps .*\\\n.*ffcv\.txt.*dali\.txt", rule)
    assert "--no-deps" in (ROOT / "docker/ffcv.sh").read_text()


# ---- what FFCV is compiled with ---------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path) -> dict[str, str]:
    """A machine with none of what FFCV is compiled with, as the environment of a command."""
    for name in ("bash", "env", "python3", "make", "mkdir", "touch"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(Path(found).resolve() if name != "python3" else found)
    return {"PATH": str(tmp_path)}


def has(machine: dict[str, str], name: str, *arguments: str) -> None:
    """Give the machine a program that succeeds if its last argument is one of `arguments`, or if none are given."""
    script = Path(machine["PATH"]) / name
    cases = "|".join(arguments) or "*"
    script.write_text(f'#!/bin/bash\ncase "${{@: -1}}" in {cases}) exit 0 ;; *) exit 1 ;; esac\n')
    script.chmod(0o755)


def missing(machine: dict[str, str]) -> str:
    command = [ROOT / "requirements/native.sh", sys.executable]
    done = subprocess.run(command, env=machine, capture_output=True, text=True)
    assert done.returncode == (1 if done.stderr else 0) and not done.stdout
    assert done.stderr.count("\n") <= 1
    return done.stderr.strip().partition("apt-get install ")[2]


def test_the_debian_packages_that_ffcv_lacks_are_named_in_one_line(machine):
    assert missing(machine) == "g++ libopencv-dev libturbojpeg0-dev pkg-config"
    has(machine, "g++")
    has(machine, "pkg-config", "libturbojpeg")
    assert missing(machine) == "libopencv-dev"
    has(machine, "pkg-config", "libturbojpeg", "opencv4")
    assert missing(machine) == ""
    has(machine, "python-without-headers", "never")
    command = [ROOT / "requirements/native.sh", "python-without-headers"]
    done = subprocess.run(command, env=machine, capture_output=True, text=True)
    assert done.stderr.endswith("apt-get install python3-dev\n")


def test_the_tests_begin_with_that_line_and_a_training_needs_none_of_it(machine, tmp_path):
    has(machine, "g++")
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    for path in [*(ROOT / "requirements").iterdir(), ROOT / "setup.py", ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    for target in ("test", "check", "slow"):
        command = ["make", target, f"PYTHON={sys.executable}"]
        done = subprocess.run(command, cwd=tmp_path, env=machine, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and not (tmp_path / ".venv").exists()
        told, *rest = done.stderr.splitlines()
        assert told.endswith("apt-get install libopencv-dev libturbojpeg0-dev pkg-config")
        assert all(line.startswith("make: ***") for line in rest)
    command = ["make", "--dry-run", "train"]
    planned = subprocess.run(command, cwd=tmp_path, env=machine, capture_output=True, text=True, check=True).stdout
    assert "lock.txt" in planned
    assert not re.search("native|ffcv|dali", planned)


def test_the_image_and_ci_install_the_packages_that_are_asked_for():
    asked = set(re.findall(r"^needs (\S+)", NATIVE.read_text(), re.MULTILINE))
    installed = (ROOT / "docker/system.sh").read_text() + (ROOT / "docker/ffcv.sh").read_text()
    installed = installed.replace("build-essential", "g++")
    assert len(asked) == 5 and all(f" {package}" in installed for package in asked)
    ci = (ROOT / ".ci/run").read_text()
    assert ci.index("stage docker/ffcv.sh") < ci.index("stage make check")


def test_optional_parts_are_extras_and_never_required(metadata):
    assert metadata["extras_require"].keys() == {"ffcv", "dali", "tensorboard", "onnx", "reference", "dev"}
    required = {canonicalize_name(Requirement(line).name) for line in metadata["install_requires"]}
    assert not required & {"ffcv", "nvidia-dali-cuda130", "apex", "tensorboard", "onnx", "torchvision", "pyautoattack"}


def test_every_module_lies_in_a_package_that_is_installed(metadata):
    for root, name in ((ROOT, "fastarat"), (ROOT / "kernels", "fastarat_kernels")):
        folders = {path.parent.relative_to(root) for path in (root / name).rglob("*.py")}
        missing = {".".join(folder.parts) for folder in folders} - set(metadata["packages"])
        assert not missing, "an __init__.py is missing"


def test_one_version_everywhere(metadata):
    assert metadata["version"] == fastarat.__version__
    assert f"\nversion: {fastarat.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{fastarat.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_paper_is_cited():
    assert "2402.14648" in (ROOT / "CITATION.cff").read_text()
