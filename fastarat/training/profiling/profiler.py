"""`fastarat train … --profile N`: where the time of a training step goes, and how far each part is from its roof.

N steps are recorded by torch.profiler; each part's time stands beside what it has to move and to compute
(`fastarat.training.profiling.cost`), and beside what this device can do at best, measured on the spot.
"""

import gzip
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, record_function

from fastarat.common.console import notice, stderr
from fastarat.common.distributed import World
from fastarat.common.errors import UserError
from fastarat.common.files import write_atomically, write_text
from fastarat.config import Config
from fastarat.config.training import AveragingConfig, CompileMode
from fastarat.data.images.dataset import Dataset, Images
from fastarat.data.loading.loader import Batch
from fastarat.training.build import build_training
from fastarat.training.profiling.cost import step_cost
from fastarat.training.profiling.parts import Shapes
from fastarat.training.profiling.report import as_text, profile_picture, summary
from fastarat.training.profiling.roofs import measure_roofs, named_format
from fastarat.training.profiling.trace import STEP, Times, activities, times_of
from fastarat.training.state import Training
from fastarat.training.step.train_step import Step

_TIMED_STEPS = 2
"""before the recording, to say what the recording itself costs"""
_WARM_UP_STEPS = 1 + _TIMED_STEPS


def first_recorded(training: Training, num_steps: int) -> int:
    """After how many steps the recording begins: `num_steps` lie in one epoch, and those timed before in the same.

    Raises `UserError` if the training has fewer steps left.
    """
    per_epoch = training.loader.steps_per_epoch
    begins = range(training.step + _WARM_UP_STEPS, training.config.epochs * per_epoch)[: 2 * per_epoch]
    # Not an epoch's first step among those timed: an evaluation comes before it, and where images grow a compilation.
    room = {begin: per_epoch - begin % per_epoch for begin in begins if begin % per_epoch > _TIMED_STEPS}
    fitting = [begin for begin, steps in room.items() if steps >= num_steps]
    if fitting:
        return fitting[0]
    most = max(room.values(), default=0)
    longer = "give more --epochs" if per_epoch > _WARM_UP_STEPS else "give a smaller --batch"
    fix = f"give --profile {most} or fewer" if most else longer
    raise UserError(
        f"--profile {num_steps}: at most {most} steps can be recorded, in one epoch of {per_epoch} steps and after "
        f"{_WARM_UP_STEPS} to warm up; {fix}"
    )


class Profiler:
    """Records steps of a `Training` and writes `profile/` into its run's directory."""

    def __init__(self, training: Training, num_steps: int, folder: Path, mode: CompileMode):
        self.training, self.num_steps, self.folder, self.mode = training, num_steps, folder, mode
        self.device = training.parts.world.device
        self.begin = first_recorded(training, num_steps)
        self.recorder: torch.profiler.profile | None = None
        self.started = self.unrecorded_ms = 0.0
        self.image_size = torch.Size()
        """height and width of the latest batch: images may grow from epoch to epoch"""

    def marked(self, step: Step) -> Step:
        """`step`, with a range round each call."""

        def ranged(batch: Batch) -> dict[str, Tensor]:
            self.image_size = batch.x.shape[2:]
            with record_function(STEP):
                return step(batch)

        return ranged

    def after_step(self) -> float:
        """Begin or end the recording if it is time; returns the seconds that this took."""
        entered, done = time.monotonic(), self.training.step
        if done == self.begin - _TIMED_STEPS:
            self.started = self._now()
        elif done == self.begin:
            self.unrecorded_ms = (self._now() - self.started) / _TIMED_STEPS * 1e3
            self._start()
        elif done == self.begin + self.num_steps:
            self._finish()
        else:
            return 0.0
        return time.monotonic() - entered

    def stop(self) -> None:
        """End a recording that has not come to its end; nothing is written."""
        if self.recorder is not None:
            self.recorder.stop()
            self.recorder = None

    def _now(self) -> float:
        """The time, when the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _start(self) -> None:
        cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        self.recorder = torch.profiler.profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)
        self.recorder.start()
        self.started = self._now()

    def _finish(self) -> None:
        assert self.recorder is not None
        wall_ms = (self._now() - self.started) * 1e3
        recorder = self.recorder
        self.stop()
        notice(f"recorded {self.num_steps} steps; counting what they cost, and measuring what the device can do")
        trace = _trace_of(recorder)
        counted = _countable(self.training, self.image_size)
        found = activities(json.loads(trace)["traceEvents"], Shapes.of(counted), self.device.type == "cuda")
        if not found:
            notice("no profile: torch.profiler saw nothing run on the device (a GPU's counters may be locked)")
            return
        # A compiled step moves no more than the fused kernels do, whichever kernels it has.
        costs = step_cost(counted, fused=self.mode != "eager")
        precision = self.training.parts.precision
        roofs = measure_roofs(self.device, precision.autocast_dtype or precision.parameter_dtype)
        times = times_of(found, wall_ms)
        profile = {**self._facts(times, wall_ms), **summary(times, self.num_steps, costs, roofs)}
        self._write(profile, trace)

    def _facts(self, times: Times, wall_ms: float) -> dict[str, Any]:
        config, cuda, precision = self.training.config, self.device.type == "cuda", self.training.parts.precision
        return {
            "recipe": config.recipe,
            "device": torch.cuda.get_device_name(self.device) if cuda else f"CPU, threads: {torch.get_num_threads()}",
            "torch": torch.__version__,
            "dtype": named_format(precision.autocast_dtype or precision.parameter_dtype, self.device),
            "kernels": self.training.parts.kernels.name,
            "compile": self.mode,
            "batch": config.batch // self.training.parts.world.size,
            "attack_steps": config.attack.steps,
            "recorded_steps": self.num_steps,
            "ms_a_step": wall_ms / self.num_steps,
            "ms_a_step_unrecorded": self.unrecorded_ms,
            "launches_a_step": times.activities / self.num_steps,
        }

    def _write(self, profile: dict[str, Any], trace: bytes) -> None:
        text = as_text(profile)
        self.folder.mkdir(exist_ok=True)
        packed = gzip.compress(trace)
        write_atomically(self.folder / "trace.json.gz", lambda temporary: _write_bytes(temporary, packed))
        write_text(self.folder / "profile.json", json.dumps(profile, indent=2) + "\n")
        write_text(self.folder / "profile.txt", text)
        profile_picture(self.folder / "profile.png", profile)
        stderr.print(text.rstrip())
        notice(f"profile: {self.folder} (open trace.json.gz in https://ui.perfetto.dev or chrome://tracing)")


@contextmanager
def profiling(training: Training, num_steps: int | None, folder: Path, mode: CompileMode) -> Iterator[Profiler | None]:
    """A profiler where one is asked for, in the first process; a recording under way is ended in any case."""
    if not num_steps or not training.parts.world.is_main:
        yield None
        return
    profiler = Profiler(training, num_steps, folder, mode)
    with _kernels_named(profiler.device.type == "cpu" and mode != "eager"):
        try:
            yield profiler
        finally:
            profiler.stop()


@contextmanager
def _kernels_named(wanted: bool) -> Iterator[None]:
    """Let compiled kernels of a CPU show up in a recording by their names."""
    if not wanted:
        yield
        return
    from torch._inductor import config  # seconds to import

    with config.patch({"cpp.enable_kernel_profile": True}):
        yield


def _countable(training: Training, image_size: torch.Size) -> Training:
    """One process's training where counting needs neither a GPU nor images to decode: with blank ones then."""
    config, dataset, parts = training.config, training.dataset, training.parts
    decoded = isinstance(dataset.train, Images)
    if decoded and parts.world.device.type == "cpu":
        return training
    config = replace(config, batch=config.batch // parts.world.size)
    if not decoded:
        config, dataset = _blank(config, dataset, image_size)
    with torch.random.fork_rng():  # new weights are drawn
        world = World(torch.device("cpu"))
        return build_training(config, dataset, world, dtype=parts.precision.dtype, kernels=parts.kernels)


def _blank(config: Config, dataset: Dataset, image_size: torch.Size) -> tuple[Config, Dataset]:
    """A batch of blank images of this size as the data set, and what takes them as they are."""
    pixels = np.zeros((config.batch, *image_size, dataset.image_shape[2]), np.uint8)
    images = Images(pixels, np.zeros(config.batch, np.int64))
    padding = config.augment.crop_padding if config.augment.crop == "padded" else 0
    config = replace(
        config,
        size=None,
        num_train_images=None,
        num_validation_images=0,
        augment=replace(config.augment, crop="padded", crop_padding=padding, start_size=None),
        averaging=AveragingConfig(),
    )
    return config, replace(dataset, train=images, test=images)


def _trace_of(recorder: torch.profiler.profile) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(path))
        return path.read_bytes()


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
