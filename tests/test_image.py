"""The image: what it is built with runs in CI too, leaves the base's packages alone, and starts what is asked for."""

import json
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted(ROOT.glob("docker/*.sh")), *sorted(ROOT.glob("requirements/*.sh")), *sorted(ROOT.glob(".ci/*"))]
LINES = (ROOT / "Dockerfile").read_text().splitlines()
WANTED = runpy.run_path(str(ROOT / "docker/wanted.py"))


def instructions(name: str) -> list[str]:
    """What follows `name` in the Dockerfile, a line an instruction."""
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


# ---- built by scripts that CI runs ----------------------------------------------------------------


def test_the_image_is_built_by_scripts_that_ci_runs():
    steps = [line.split() for line in instructions("RUN")]
    assert [step[0] for step in steps] == ["docker/system.sh", "docker/install.sh", "docker/ffcv.sh"]
    ci = (ROOT / ".ci/run").read_text()
    for script, *arguments in steps:
        assert os.access(ROOT / script, os.X_OK)
        assert re.search(rf"^ *stage {script}{' .+' if arguments else ''}$", ci, re.MULTILINE), (
            f"CI does not run {script}"
        )


def test_everything_that_the_image_copies_is_there():
    sources = [source for line in instructions("COPY") for source in line.split()[:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)


def test_the_image_starts_the_entry_point_that_ci_starts():
    (entry,) = instructions("ENTRYPOINT")
    (script,) = json.loads(entry)
    script = script.removeprefix("/opt/fastarat/")
    assert "WORKDIR /opt/fastarat" in LINES
    assert os.access(ROOT / script, os.X_OK)
    assert script in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    subprocess.run(["shellcheck", *SCRIPTS], check=True)


# ---- what the base brought stays ------------------------------------------------------------------


def test_the_torch_and_numpy_of_an_image_stay_and_the_rest_is_the_locks():
    base = {"torch": "2.13.0a0+9186a08b2c.nv26.7.1", "triton": "3.7.1", "numpy": "2.3.5", "setuptools": "70.2.0"}
    stays = WANTED["kept"](base)
    assert stays.keys() == {"torch", "triton", "numpy"}
    lock = (ROOT / "requirements/lock.txt").read_text().splitlines()
    left = WANTED["wanted"]("\n".join(lock), stays).splitlines()
    assert [re.split("=", line)[0] for line in lock if line not in left] == ["torch", "triton", "numpy"]


@pytest.mark.parametrize(
    ("found", "stays"),
    [
        ({}, set()),
        ({"torch": "2.10.0", "triton": "3.6.0", "numpy": "2.3.5"}, {"numpy"}),
        ({"torch": "2.11.0", "numpy": "1.26.4"}, {"torch"}),
        ({"triton": "3.7.1"}, set()),
    ],
    ids=["nothing there", "an older torch", "an older numpy", "triton alone"],
)
def test_what_is_too_old_is_replaced_and_triton_stays_only_with_its_torch(found, stays):
    assert WANTED["kept"](found).keys() == stays


def test_new_enough_means_what_setup_py_says():
    setup = (ROOT / "setup.py").read_text()
    bounds = [Requirement(line) for line in re.findall(r'"((?:torch|numpy|setuptools)>=[\d.]+)"', setup)]
    assert {bound.name for bound in bounds} == WANTED["KEPT_FROM"].keys() - {"triton"}
    for bound in bounds:
        assert str(bound.specifier) == ">=" + ".".join(map(str, WANTED["KEPT_FROM"][bound.name]))


# ---- docker run IMAGE … ---------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path) -> Path:
    """A folder with the entry point, stand-ins for the commands it starts, and a place for NVIDIA's start script."""
    (tmp_path / "docker").mkdir()
    script = (ROOT / "docker/entrypoint.sh").read_text()
    assert "=/opt/nvidia/" in script
    executable(tmp_path / "docker/entrypoint.sh", script.replace("=/opt/nvidia/", f"={tmp_path}/nvidia/"))
    for name in ("python3", "fastarat"):
        told = f'echo {name}; printf "%s\\n" "$@"; echo "PYTHONPATH=$PYTHONPATH" "$PYTHONSAFEPATH" >&2'
        executable(tmp_path / "bin" / name, f"#!/bin/bash\n{told}\n")
    return tmp_path


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def started(image: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `docker run IMAGE ARGUMENTS` starts, told a line a word on stdout."""
    environment = {**os.environ, "PATH": f"{image}/bin:{os.environ['PATH']}", "PYTHONPATH": "", "PYTHONSAFEPATH": ""}
    command = [image / "docker/entrypoint.sh", *arguments]
    return subprocess.run(command, env=environment, cwd=image, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [[], ["train", "digits-arat", "--seed", "1"], ["eval", "a run"]], ids=" ".join)
def test_a_run_of_the_image_is_the_fastarat_command(image, arguments):
    assert started(image, *arguments).stdout.splitlines() == ["fastarat", *(arguments or [""])]


LADDER = "--device cuda --rows bench-results/throughput.jsonl"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("bench", f"bench.throughput {LADDER}"),
        ("bench --batch 128 256", f"bench.throughput {LADDER} --batch 128 256"),
        ("bench throughput --smoke", f"bench.throughput {LADDER} --smoke"),
        ("bench kernels", "bench.kernels --device cuda --rows bench-results/kernels.jsonl"),
        ("bench loaders --photos a", "bench.loaders --device cuda --rows bench-results/loaders.jsonl --photos a"),
        ("bench startup", "bench.startup --device cuda --rows bench-results/startup.jsonl"),
        (
            "bench campaign --budget 900",
            "bench.campaign --budget 540 --out bench-results/campaign --state runs/campaign --budget 900",
        ),
    ],
)
def test_bench_starts_a_benchmark_of_the_images_sources_and_says_with_what(image, arguments, command):
    run = started(image, *arguments.split())
    assert run.returncode == 0
    assert run.stdout.split() == ["python3", "-m", *command.split()]
    said, path = run.stderr.splitlines()
    assert said.strip() == f"python3 -m {command}"
    assert path == f"PYTHONPATH={image}:{image}/kernels 1", "the folder that is mounted must not shadow the image"
    module = ROOT / command.split()[0].replace(".", "/")
    assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()


def test_an_unknown_benchmark_is_one_line_that_names_those_there_are(image):
    run = started(image, "bench", "trhoughput", "--smoke")
    assert run.returncode == 2
    assert run.stdout == ""
    assert (
        run.stderr
        == "bench: error: no benchmark 'trhoughput': give throughput, campaign, kernels, loaders or startup\n"
    )


@pytest.mark.parametrize("arguments", [["recipes", "--json"], ["bench", "--rows", "my rows"]], ids=" ".join)
def test_nvidias_start_script_runs_first_and_stdout_stays_the_commands(image, arguments):
    alone = started(image, *arguments)
    executable(image / "nvidia/nvidia_entrypoint.sh", '#!/bin/bash\necho A BANNER\nexec "$@"\n')
    run = started(image, *arguments)
    assert run.stdout == alone.stdout
    assert "A BANNER" in run.stderr
