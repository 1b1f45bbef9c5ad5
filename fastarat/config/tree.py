"""The whole configuration of a run: one tree of frozen dataclasses, what is checked across its parts, and its JSON."""

import json
import os
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastarat.common.errors import UserError, unknown
from fastarat.common.json_files import read_json
from fastarat.common.typed import MOST, TOO_MANY, build
from fastarat.config.attack import AttackConfig, doubt, short_reach, too_large
from fastarat.config.data import DECODERS, AugmentConfig, ExtraConfig, LoadingConfig
from fastarat.config.method import ARATConfig, MethodSettings
from fastarat.config.model import ModelConfig
from fastarat.config.training import (
    AveragingConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ScheduleConfig,
)

Fidelity = Literal["paper", "published-code"]
LEAST = {
    "epochs": 1,
    "batch": 1,
    "num_train_images": 1,
    "num_validation_images": 0,
    "nodes": 1,
    "gpus": 0,
    "procs": 0,
}


@dataclass(frozen=True)
class Config:
    """Everything that determines a training run."""

    recipe: str = "custom"
    """the recipe by its name, which may stand first without this flag"""
    data: str = "cifar10"
    """data set: a name, an image folder, a .tar or .tar.xz of one, an .npz, a prepared set, a .beton, or a folder of
    shards"""
    size: int | None = None
    """pixels of a side that images are brought to; default as they are stored, where all have one size"""
    loader: str = "auto"
    """where batches come from: resident (all on the device), ffcv (a .beton), dali (image files and shards), plain
    (PIL); auto chooses"""
    epochs: int = 100
    """passes over the training images"""
    batch: int = 128
    """images in a step, divided among processes"""
    seed: int = 0
    """initial weights, order, augmentation and attack noise"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one"""
    nodes: int = 1
    """machines, which find each other at --rendezvous; LEAST:MOST: as many of them as are there"""
    gpus: int = 0
    """processes on each machine, one a GPU; 0: one process"""
    procs: int = 0
    """processes on each machine, on the CPU; 0: one process"""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "auto"
    """number format of forwards and gradients; auto: bf16 where the GPU or the CPU computes it"""
    compile: Literal["auto", "eager", "compile", "graph"] = "auto"
    """how the step runs: as it is, compiled, or compiled and captured in a CUDA graph; auto: graph on a GPU; on a CPU
    compile where that saves more time than it takes, else eager"""
    kernels: Literal["auto", "pytorch", "triton"] = "auto"
    """batch-norm, attack update, augmentation and pooling in plain PyTorch or by fused Triton kernels (a GPU's);
    auto: triton where it runs in a CUDA graph"""
    sync_bn: bool = False
    """batch-norm statistics over all processes"""
    bf16_gradients: bool = False
    """gradients travel between processes, and are added, in bf16: half the bytes"""
    fidelity: Fidelity = "paper"
    """AR-AT as its paper describes it, or with the departures of its published code"""
    num_train_images: int | None = None
    """train on the first N images of a random order; default all"""
    num_validation_images: int = 0
    """training images split off to choose the best checkpoint; 0: the last epoch is the result"""
    model: ModelConfig = field(default_factory=ModelConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    method: MethodSettings = field(default_factory=ARATConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    extra: ExtraConfig = field(default_factory=ExtraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def num_processes(self) -> int:
        """How many processes train."""
        return self.nodes * max(self.gpus, self.procs, 1)

    @property
    def eps_255(self) -> float:
        """Radius of the threat model that evaluations and the deployed model name, in 1/255 of the pixel range. Raises
        as `AttackConfig.known_eps_255` does."""
        return self.attack.known_eps_255 if self.evaluation.eps_255 is None else self.evaluation.eps_255

    @property
    def evaluation_step_255(self) -> float:
        """The step size of evaluations that is given, else a quarter of their radius. Raises as `eps_255` does."""
        return self.eps_255 / 4 if self.evaluation.step_255 is None else self.evaluation.step_255

    def size_in(self, epoch: int) -> int | None:
        """Pixels of a side that training images are brought to in `epoch` (from 1); None: they stay as they are."""
        return self.size and self.augment.size_in(epoch, self.epochs, self.size)

    def resolved(self) -> "Config":
        """The same with every radius and step size that follows from others as a number: what a run keeps."""
        evaluation = replace(self.evaluation, step_255=self.evaluation_step_255)
        return replace(self, attack=self.attack.resolved(), evaluation=evaluation)

    def following(self) -> "Config":
        """`resolved`, but for step sizes of a quarter of their radius, which are not given and follow another one."""
        config = self.resolved()
        attack, evaluation = config.attack, config.evaluation
        if attack.step_255 == attack.known_eps_255 / 4:
            attack = replace(attack, step_255=None)
        if evaluation.step_255 == self.eps_255 / 4:
            evaluation = replace(evaluation, step_255=None)
        return replace(config, attack=attack, evaluation=evaluation)

    def doubts(self) -> list[str]:
        """What there is to ask of settings that can be meant, a sentence each."""
        radii = dict.fromkeys((self.attack.known_eps_255, self.eps_255))
        found = [doubt(self.attack.norm, eps_255) for eps_255 in radii]
        found.append(short_reach("the evaluation", self.evaluation.steps, self.evaluation_step_255, self.eps_255))
        return [said for said in found if said]

    def problems(self) -> list[str]:
        """Everything wrong with the settings, each a sentence that names the fix."""
        found = []
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                found.append(f"{name} is {value}: give {least} or more")
        found += [
            f"{flag.replace('.', ' ').replace('-', '_')} is {value}: {TOO_MANY}"
            for flag, value in by_flag(self).items()
            if flag != "seed" and isinstance(value, int) and value >= MOST
        ]
        if not 0 <= self.seed < 2**64:
            found.append(f"seed is {self.seed}: give 0 or more, below 2^64")
        if not found:  # or there is no number of processes to divide by
            found += self._process_problems()
        loaders = ("auto", "resident", *DECODERS)
        if self.loader not in loaders:
            found.append(str(unknown("loader", self.loader, loaders)))
        found += self._size_problems()
        found += too_large("evaluation eps_255", self.attack.norm, self.evaluation.eps_255 or 0.0)
        if self.averaging.kind != "none" and self.averaging.start_epoch > self.epochs:
            found.append(
                f"averaging starts at epoch {self.averaging.start_epoch} of {self.epochs}: "
                "give a smaller --averaging.start-epoch"
            )
        for part in fields(self):
            value = getattr(self, part.name)
            if is_dataclass(value):
                found += value.problems()  # type: ignore[attr-defined]
        return found

    def _process_problems(self) -> list[str]:
        found = []
        if self.gpus and self.procs:
            found.append("gpus and procs exclude each other: give one")
        if self.procs and self.device == "cuda":
            found.append("procs are processes on the CPU: give --gpus N for several GPUs")
        if self.gpus and self.device == "cpu":
            found.append("gpus are several GPUs, and device is cpu: give --device cuda or auto")
        rows = self.batch if self.sync_bn else self.batch // self.num_processes
        if isinstance(self.method, ARATConfig) and rows == 1:
            found.append("a batch-norm of one image is none: give every process 2 or more, or --sync-bn")
        if self.batch % self.num_processes:
            found.append(f"batch {self.batch} does not divide among {self.num_processes} processes: give a multiple")
        return found

    def _size_problems(self) -> list[str]:
        resized, start = self.augment.crop == "resized", self.augment.start_size
        found = []
        if self.size is not None and not 1 <= self.size <= 4096:
            found.append(f"size is {self.size}: give 1 to 4096 pixels")
        if resized and self.size is None:
            found.append("resized crops need a size: give --size, such as 224")
        if resized and self.loader == "resident":
            others = " or ".join(DECODERS)
            found.append(f"the resident loader has no resized crops: leave --loader out, or give {others}")
        if start is not None and self.size is not None and start > self.size:
            found.append(f"augment start_size {start} is above size {self.size}: give a smaller one")
        if self.loading.decode == "gpu" and self.loader not in ("auto", "dali"):
            found.append("only DALI decodes on the GPU: give --loader dali, or leave --loading.decode out")
        return found

    def checked(self) -> "Config":
        """This configuration. Raises `UserError` with all problems in one line."""
        problems = self.problems()
        if problems:
            raise UserError("; ".join(problems))
        return self


def to_json(config: Config) -> str:
    """The configuration as JSON, complete."""
    return json.dumps(asdict(config), indent=2) + "\n"


def by_flag(config: Config) -> dict[str, Any]:
    """Every setting by the name of its flag, as `attack.step-255`."""
    return _flat(asdict(config), "")


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        flag = prefix + name.replace("_", "-")
        found |= _flat(value, f"{flag}.") if isinstance(value, dict) else {flag: value}
    return found


def from_dict(values: dict[str, Any], source: str) -> Config:
    """The configuration that `to_json` wrote. Raises `UserError`, which names `source`, for what does not fit."""
    if not isinstance(values, dict):
        raise UserError(f"{source} holds no configuration")
    return build(Config, values, source)


def load_config(path: Path) -> Config:
    """Read a run's `config.json`. Raises `UserError` with a way round it if it is none, or holds what no run can
    have."""
    if not os.path.lexists(path):
        raise UserError(f"cannot read {path}: it does not exist; is this a run directory?")
    try:
        config = from_dict(read_json(path), str(path))
        if problems := config.problems():
            raise UserError(f"{path}: {problems[0]}")
    except UserError as error:
        way_round = "move it away, and eval reads model.safetensors alone; a new run takes another's settings by --from"
        raise UserError(f"{error}; {way_round}") from error
    return config
