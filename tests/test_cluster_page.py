"""The files of docs/cluster.md: scripts that shellcheck takes, and objects with the fields that their readers know."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastarat.commands.train import parse_arguments

yaml = pytest.importorskip("yaml", reason="needs PyYAML (requirements/docs.txt or dali.txt)")
PAGE = (Path(__file__).parents[1] / "docs/cluster.md").read_text()
# https://docs.skypilot.co, "task YAML", and the TrainJob of https://www.kubeflow.org/docs/components/trainer
SKYPILOT = {"name", "num_nodes", "resources", "file_mounts", "setup", "run", "envs", "workdir", "secrets"}
RESOURCES = {"accelerators", "use_spot", "job_recovery", "infra", "cpus", "memory", "disk_size", "image_id"}
TRAINER = {"image", "command", "args", "env", "numNodes", "numProcPerNode", "resourcesPerNode"}


def blocks(language: str) -> list[str]:
    """The code of the page in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def loaded() -> tuple[dict[str, Any], dict[str, Any]]:
    """SkyPilot's file and Kubeflow's."""
    skypilot, kubeflow = map(yaml.safe_load, blocks("yaml"))
    return skypilot, kubeflow


def shellcheck(script: str, dialect: str) -> str:
    """What it finds in a script."""
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("needs shellcheck (requirements/dev.txt)")
    done = subprocess.run([program, "--shell", dialect, "-"], input=script, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", blocks("bash"), ids=["slurm", "lsf"])
def test_a_script_has_nothing_that_shellcheck_finds(script):
    assert not shellcheck(script, "bash")


def test_skypilots_file_has_its_fields_and_a_script():
    skypilot, _ = loaded()
    assert skypilot.keys() <= SKYPILOT and skypilot["resources"].keys() <= RESOURCES
    assert not shellcheck(skypilot["run"].replace("$args", '"$args"'), "sh")  # two words on purpose
    assert skypilot["file_mounts"].keys() == {"/runs"} and "/runs/arat" in skypilot["run"]


def test_kubeflows_file_has_its_fields_and_starts_a_training():
    _, kubeflow = loaded()
    assert (kubeflow["kind"], kubeflow["apiVersion"]) == ("TrainJob", "trainer.kubeflow.org/v1alpha1")
    spec, trainer = kubeflow["spec"], kubeflow["spec"]["trainer"]
    assert spec.keys() == {"runtimeRef", "trainer"} and trainer.keys() <= TRAINER
    assert trainer["command"] == ["torchrun", "-m", "fastarat", "train"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert parse_arguments(trainer["args"]).config.recipe == "cifar10-resnet18-arat"


@pytest.mark.parametrize(
    "text", [blocks("bash")[0], blocks("bash")[1], loaded()[0]["run"]], ids=["slurm", "lsf", "sky"]
)
def test_the_trainings_of_scripts_are_ones_that_can_be_asked_for(text):
    recipes = re.findall(r"cifar10-resnet18-arat --out \S+(?: --nodes.*)?", text.replace('"', ""))
    assert recipes
    for found in recipes:
        flags = found.replace("$head", "head").replace("$SKYPILOT_NUM_NODES", "2").rstrip(")")
        parse_arguments(flags.replace("$SKYPILOT_NUM_GPUS_PER_NODE", "8").split())


def test_slurms_script_runs_a_recipe_then_resumes_it_and_queues_again_after_a_signal(tmp_path):
    """With programs in the place of Slurm's and of Python that note how they were called."""
    called = tmp_path / "called"
    for name, code in (("srun", 143), ("scontrol", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {called}\nexit {code}\n')
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
    for _ in range(2):
        done = subprocess.run(["bash", "-c", blocks("bash")[0]], env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 143
        (tmp_path / "runs/arat-12").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/arat-12/config.json").touch()
    train = "srun --kill-on-bad-exit=1 python -m fastarat train"
    assert called.read_text().splitlines() == [
        f"{train} cifar10-resnet18-arat --out runs/arat-12",
        "scontrol requeue 12",
        f"{train} --resume runs/arat-12",
        "scontrol requeue 12",
    ]
