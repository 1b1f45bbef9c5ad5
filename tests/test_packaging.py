"""A clone installs: the locks are exact and complete, and there is one version everywhere."""

import re
import runpy
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
from fastarat.verification import doctor
from tests.helpers.optional import needs_dali, needs_ffcv

ROOT = Path(__file__).parents[1]
LOCKS = ("lock", "dev", "ffcv", "dali", "docs", "loggers")
LOCK, DEV, FFCV, DALI, DOCS, LOGGERS = (ROOT / f"requirements/{name}.txt" for name in LOCKS)
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


@pytest.mark.parametrize("path", [LOCK, DEV, FFCV, DALI, DOCS, LOGGERS], ids=lambda path: path.name)
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


@pytest.mark.parametrize(("path", "extras"), [(DOCS, ["docs"]), (LOGGERS, ["wandb", "mlflow"])])
def test_what_a_target_needs_is_locked_on_top_of_the_checks(metadata, path, extras):
    assert "-r dev.txt" in path.read_text().splitlines()
    assert not versions(LOCK, DEV).keys() & versions(path).keys(), "pinned in both files"
    wanted = [line for extra in extras for line in metadata["extras_require"][extra]]
    assert unmet(wanted, versions(LOCK, DEV, path)) == []
    mine = versions(path)
    for others in (versions(FFCV, DALI), versions(DOCS)):
        assert all(others[name] == mine[name] for name in others.keys() & mine.keys())


@pytest.mark.parametrize(("extra", "path"), [("ffcv", FFCV), ("dali", DALI)])
def test_a_loader_is_locked_on_top_of_a_run(metadata, extra, path):
    others = {LOCK, DEV, FFCV, DALI} - {path}
    assert not versions(*others).keys() & versions(path).keys(), "pinned in both files"
    assert unmet(metadata["extras_require"][extra], versions(LOCK, path)) == []


INSTALLED = [pytest.param(FFCV, marks=needs_ffcv, id="ffcv"), pytest.param(DALI, marks=needs_dali, id="dali")]


@pytest.mark.parametrize("path", INSTALLED)
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


@pytest.mark.parametrize("path", INSTALLED)
def test_a_loader_that_is_installed_is_the_locked_one(path):
    for name in versions(path).keys() - {"pyyaml", "pyyaml-ft"}:
        assert version(name) == versions(path)[name]


def test_no_loader_brings_a_torch_of_its_own():
    assert not versions(FFCV, DALI).keys() & {"torch", "torchvision", "triton", "numpy"}
    for script in ("docker/ffcv.sh", "requirements/loaders.sh"):
        installs = re.findall(r"pip install .*", (ROOT / script).read_text())
        assert installs and all("--no-deps" in line for line in installs)


def test_windows_is_refused_in_one_line_that_names_wsl():
    code = "import sys; sys.platform = 'win32'; import fastarat.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    line = "ImportError: fastarat does not run on Windows itself: install it in WSL2 (wsl --install)"
    assert done.stderr.splitlines()[-1] == line


def test_optional_parts_are_extras_and_never_required(metadata):
    assert metadata["extras_require"].keys() == {
        *("ffcv", "dali", "dali12", "tensorboard", "wandb", "mlflow", "onnx", "pyautoattack", "slurm", "energy"),
        *("docs", "dev"),
    }
    required = {canonicalize_name(Requirement(line).name) for line in metadata["install_requires"]}
    assert not required & {
        "ffcv",
        "nvidia-dali-cuda130",
        "apex",
        "tensorboard",
        "wandb",
        "onnx",
        "torchvision",
        "pyautoattack",
    }


def test_what_an_index_shows_of_the_readme_links_to_no_file(metadata):
    text = metadata["long_description"]
    assert metadata["long_description_content_type"] == "text/markdown" and "| AR-AT |" in text
    assert set(re.findall(r"\]\(([^)]*)", text)) == {"https://arxiv.org/abs/2402.14648"}


def test_the_page_of_the_installation_has_every_extra(metadata):
    page = (ROOT / "docs/installation.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == sorted(metadata["extras_require"])


def test_the_doctor_has_every_extra_of_a_user(metadata):
    named = re.findall(r"\(extra: (.+?)\)", "\n".join(doctor.OPTIONAL.values()))
    words = {word for extras in named for word in extras.split(", or ")}
    assert words == metadata["extras_require"].keys() - {"dev", "docs"}


def test_every_module_lies_in_a_package_that_is_installed(metadata):
    for root, name in ((ROOT, "fastarat"), (ROOT / "kernels", "fastarat_kernels")):
        folders = {path.parent.relative_to(root) for path in (root / name).rglob("*.py")}
        missing = {".".join(folder.parts) for folder in folders} - set(metadata["packages"])
        assert not missing, "an __init__.py is missing"


def test_every_public_name_can_be_imported():
    assert [name for name in fastarat.__all__ if getattr(fastarat, name, None) is None] == []


def test_one_version_everywhere(metadata):
    assert metadata["version"] == fastarat.__version__
    assert f"\nversion: {fastarat.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{fastarat.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_paper_is_cited():
    assert "2402.14648" in (ROOT / "CITATION.cff").read_text()
