"""A step traced and lowered for a GPU that is not there is one graph, whose kernels ptxas takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.version.cuda is not None, reason="needs the CPU build of torch, which takes a pretended GPU"
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="libraries are preloaded on Linux"),
]


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which torch takes a device named cuda, from empty caches."""
    folder, libraries = tmp_path_factory.mktemp("guard"), Path(torch.__file__).parent / "lib"
    source, library = Path(__file__).with_name("guard.cpp"), folder / "libguard.so"
    includes = [f"-I{path}" for path in include_paths()]
    build = ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", *includes, source, "-o", library, f"-L{libraries}"]
    subprocess.run([*build, "-ltorch_cpu", "-lc10"], check=True)
    pretended = {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(libraries)}
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    here = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**here, **pretended, **paths, "TRITON_CACHE_DIR": str(folder / "triton")}


def lowered(name: str, guard: dict[str, str]) -> dict[str, Any]:
    """What `tests.traced_gpu.lowered` says of a recipe's step."""
    call = [sys.executable, "-m", "tests.traced_gpu.lowered", name]
    done = subprocess.run(call, cwd=ROOT, env=guard, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["arat", "mart"])
def test_a_step_is_one_graph_for_a_gpu_and_ptxas_takes_its_kernels(method, guard):
    said = lowered(f"digits-{method}", guard)
    ours = said["ours"]
    assert said["convolutions"] == 6 * 3  # two attack steps and the update
    assert ours["pgd_step"] == 2 and said["kernels"] > 10
    assert ours["batch_norm_partials"] == ours["batch_norm_apply"] == ours["batch_norm_gradient_partials"] > 0
