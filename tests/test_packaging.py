"""A clone installs: the locks are exact and complete, and there is one version everywhere."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fastarat

ROOT = Path(__file__).parents[1]
LOCK, DEV, FFCV = (ROOT / f"requirements/{name}.txt" for name in ("lock", "dev", "ffcv"))


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
    parsed = [Requirement(line) for line in wanted]
    return [str(w) for w in parsed if not w.specifier.contains(locked.get(canonicalize_name(w.name), "0"))]


@pytest.mark.parametrize("path", [LOCK, DEV, FFCV], ids=lambda path: path.name)
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


def test_ffcv_is_locked_on_top_of_a_run(metadata):
    assert not versions(LOCK).keys() & versions(FFCV).keys(), "pinned in both files"
    assert unmet(metadata["extras_require"]["ffcv"], versions(LOCK, FFCV)) == []


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
