"""Benchmarks on the simulated GPU: they run to their ends; their times are the host's, and mean nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.campaign.files import rows_in
from bench.campaign.stages import BUDGET, CampaignSetting, stages
from bench.common.processes import environment, last_line
from tests.helpers.simulated_gpu import counted_only
from tests.helpers.simulated_gpu import pytestmark as needs_simulated_gpu

pytestmark = [*needs_simulated_gpu, counted_only]
ROOT = Path(__file__).parents[2]


def test_the_kernels_are_measured_to_the_end():
    command = [sys.executable, "-m", "bench.kernels", "--smoke", "--device", "cuda"]
    done = subprocess.run(
        [*command, "--kernels", "pgd_step", "pooled_features"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert "simgpu:" not in done.stderr and "WRONG" not in done.stderr, done.stderr


STAGES = {
    "environment": (0, "NVIDIA H100 80GB HBM3 (simulated)"),
    "correctness": (0, "skipped"),  # its tests compare numbers, of which there are none
    "digits, batch 8": (0, "images/s at batch 8"),
    "profile": (1, "torch.profiler saw nothing run on the device"),
}
"""of a campaign's smoke run, with what each ends in; the others run, too, and take longer"""


@pytest.mark.parametrize(("name", "code", "said"), [(name, *end) for name, end in STAGES.items()], ids=STAGES)
def test_a_stage_of_a_campaign_ends_as_it_can_where_no_number_means_anything(tmp_path, name, code, said):
    """In any time: on a busy machine the campaign's own would not do."""
    for folder in ("out", "runs"):
        (tmp_path / folder).mkdir()
    setting = CampaignSetting(tmp_path / "out", tmp_path / "runs", None, "random", None, "cuda", smoke=True)
    stage = next(stage for stage in stages(setting) if stage.name == name)
    command = [part.replace(BUDGET, "2000") for part in stage.command]
    done = subprocess.run(command, cwd=ROOT, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True)
    assert done.returncode == code and "simgpu:" not in done.stderr, done.stderr
    rows = list(rows_in(setting.out))
    text = stage.headline(rows) if stage.headline else last_line(done.stdout + done.stderr)
    assert said in text and all(any(fields.items() <= row.items() for row in rows) for fields in stage.covers), rows
