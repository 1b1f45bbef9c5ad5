"""A campaign's stages: their order, and what they run."""

import tarfile
from pathlib import Path

import pytest

from bench.campaign import __main__ as campaign
from bench.campaign.checks import CAPTURED_STEP, KERNEL_TESTS, gpu_tests, kernel_tests
from bench.campaign.stages import BUDGET, CampaignSetting, stages
from bench.common.inputs import random_images
from fastarat.data.formats import prepared

ROOT = Path(__file__).parents[3]


def test_the_stages_come_in_the_order_of_what_is_wanted_most(tmp_path):
    found = stages(CampaignSetting(tmp_path, tmp_path, "images.tar", "images", None, "cuda", smoke=False))
    assert [stage.name for stage in found] == [
        *("environment", "correctness", "golden vectors"),
        *("resnet18, batch 128", "resnet18, batch 256, 512, 1024", "wrn-34-10, batch 128"),
        *(f"kernel {name}" for name in ("dual_batch_norm", "pgd_step", "augment", "pooled_features")),
        *("profile", "startup", "loaders"),
        *("training arat", "autoattack arat", "training at", "autoattack at"),
        "other methods",
        *("test captured attacks", "test captured step", "test dali gpu", "test host syncs", "test on a gpu"),
        *("test stream gpu", "kernel tests", "rest of the ladder"),
    ]
    ladder, batches = found[3], found[4]
    assert {row["variant"] for row in ladder.covers} == {"published", "strong", "default"}
    assert ladder.command[ladder.command.index("--batch") + 1] == "128" and BUDGET in ladder.command
    assert {row["batch"] for row in batches.covers} == {256, 512, 1024}
    assert [stage.name for stage in found if stage.lacks] == ["golden vectors"]
    ladders = [stage for stage in found if "bench.throughput" in stage.command]
    assert len(ladders) == 5 and all(stage.grace == 30 < stage.least for stage in ladders)
    commands = {stage.name: stage.command for stage in found}
    assert set(commands["correctness"]) >= {CAPTURED_STEP, *kernel_tests()}
    file, test = CAPTURED_STEP.split("::")
    assert f"def {test}(" in Path(file).read_text() and file in commands["test captured step"]
    assert str(ROOT / "tests" / "kernels") in commands["kernel tests"]


def test_data_has_the_name_that_its_rows_have(tmp_path):
    dataset = random_images("digits", 20)
    prepared.write(dataset, tmp_path / "prepared", "random")
    with tarfile.open(tmp_path / "photos.tar", "w"):
        pass
    names = {None: "random", "digits": "digits", "prepared": "random", "photos.tar": "photos"}
    for data, name in names.items():
        given = data if data in (None, "digits") else str(tmp_path / data)
        assert campaign.dataset_name(given) == name


def test_the_gpu_tests_are_found_by_their_marker():
    names = {Path(path).relative_to(ROOT).as_posix() for path in gpu_tests()}
    assert {"tests/kernels", "tests/gpu/test_captured_step.py"} <= names
    assert "tests/test_cli.py" not in names


def test_each_kernel_has_tests_in_the_selection_that_correctness_begins_with(request):
    kernels = ROOT / "kernels" / "fastarat_kernels"
    assert KERNEL_TESTS.keys() == {path.parent.name for path in kernels.glob("*/__init__.py")}
    for kernel, tests in KERNEL_TESTS.items():
        texts = [(ROOT / "tests" / "kernels" / test.partition("::")[0]).read_text() for test in tests]
        imports = (f"from fastarat_kernels.{kernel}", f"from fastarat_kernels import {kernel}")
        assert texts and all(any(line in text for line in imports) for text in texts), kernel
    for path in {test.partition("::")[0] for test in kernel_tests()}:
        cases = [case.nodeid for case in pytest.Module.from_parent(request.session, path=Path(path)).collect()]
        for test in kernel_tests():
            if test.startswith(f"{path}::"):
                assert cases.count(str(Path(test).relative_to(ROOT))) == 1
