"""What happens when the first, compiled step does not come back."""

from dataclasses import replace

import pytest
import torch

from fastarat.checkpoint import load_checkpoint
from fastarat.data.sources import open_dataset
from fastarat.engine.distributed import World
from fastarat.engine.loop import Interrupted, Loop
from fastarat.engine.training import build_training
from fastarat.errors import WorkError
from fastarat.recipes import recipe
from fastarat.run import Run


@pytest.mark.parametrize("stopped", [True, False])
def test_a_compile_that_ctrl_c_ends_is_a_stop_and_not_a_failure(tmp_path, stopped):
    config = replace(recipe("digits-arat"), num_train_images=128)
    training = build_training(config, open_dataset("digits"), World(torch.device("cpu")), "fp32")
    run = Run(tmp_path / "run")
    run.create(config, {})

    def compiler_dies(batch):
        loop.stop_requested = stopped
        raise WorkError("the step could not be compiled")

    loop = Loop(training, run, compiler_dies, compiles=True)
    with pytest.raises(Interrupted if stopped else WorkError, match="compil"):
        loop.fit()
    assert load_checkpoint(run.checkpoint())["step"] == 0
