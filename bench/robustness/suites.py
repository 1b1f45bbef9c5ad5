"""Which trainings a suite of the robustness benchmark compares: equal data, net, epochs and threat model; and, where a
suite says so, a method once more for as many epochs as the minutes of another one allow.

A training is named `<family>-<method>`, after its recipe, or `<family>-<variant>` for an ablation of AR-AT, with
`longer` behind it, or the number format where a suite compares formats. Suites share the trainings of one name: each is
run once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from bench.common.inputs import METHODS, PAPER
from fastarat.config import Config, Fidelity
from fastarat.config.evaluation import EvaluationDtype
from fastarat.config.method import ARATConfig, ARRESTConfig
from fastarat.config.recipes import recipe

# The AR-AT paper's path from plain invariance to AR-AT: each of these has one of the switches more than the one before.
SWITCHED_OFF = {"stop_gradient": "none", "predictor": False, "batch_norm": "shared", "auto_balance": False}
STAGES = ("naive", "stop-gradient", "predictor", "split-batch-norm")
ABLATIONS: dict[str, dict[str, Any]] = {
    name: dict(list(SWITCHED_OFF.items())[number:]) for number, name in enumerate(STAGES)
}
LONGER = "-longer"
"""behind a method: the same for as long as another one takes"""


@dataclass(frozen=True)
class Suite:
    """Trainings that are compared, and on how much they are measured."""

    family: str
    """data and net: `<family>-<method>` are recipes"""
    methods: tuple[str, ...]
    """those, names of `ABLATIONS`, and methods with `LONGER` behind them"""
    data: str
    seeds: int
    num_images: int | None
    """test images of the clean accuracy and of PGD-20; None: all"""
    num_autoattack: int | None
    """how many of them, from the first on, AutoAttack attacks; None: all"""
    analysed: bool = False
    """measure gradient conflict, mixture of distributions and collapse too"""
    snapshots: int = 4
    """states of each training that are kept for `fastarat analyze`"""
    dtypes: tuple[Literal["auto", "fp32", "bf16"], ...] = ("auto",)
    """number formats of each training"""
    search: EvaluationDtype = "fp32"
    """number format in which AutoAttack searches; what it finds counts where float32 confirms it"""
    num_train_images: int | None = None
    """of the data, the first; None: all but those for validation"""
    longer: Mapping[str, int] = field(default_factory=dict)
    """epochs of the methods that are trained for longer than the others, by their names in `methods`"""


DISTILLED = ("at", "trades", "lbgat", "standard", "arrest")
SUITES = {
    "digits": Suite("digits", METHODS, "digits", 3, None, 200),
    "cifar10-tiny": Suite("cifar10-tiny", ("at", "trades", "arat"), "cifar10-jpeg", 1, 2000, 500, snapshots=0),
    "cifar10-resnet18-w32": Suite(
        "cifar10-resnet18-w32",
        ("at", "trades", "arat", "at-longer"),
        "cifar10-jpeg",
        2,
        2000,
        1000,
        analysed=True,
        search="bf16",  # in fp32 hours on two cores, by estimate
        # Equal minutes, by count: a step of AT passes the net 9 times (forward and back by images in each of 3 attack
        # steps; forward, back by images and by weights in training), one of AR-AT 12, for it trains on both halves. So
        # 8 epochs of AR-AT are 10.7 of AT. TRADES trains on both halves too: its equal epochs are equal minutes. The
        # minutes in the rows are the check.
        longer={"at-longer": 10},
    ),
    "digits-formats": Suite("digits", ("at", "arat"), "digits", 3, None, 200, snapshots=0, dtypes=("fp32", "bf16")),
    "cifar10-tiny-formats": Suite(
        "cifar10-tiny",
        ("at", "arat"),
        "cifar10-jpeg",
        3,
        2000,
        500,
        snapshots=0,
        dtypes=("fp32", "bf16"),
        num_train_images=10_000,
    ),
    "ablation": Suite("digits", (*ABLATIONS, "arat", *DISTILLED), "digits", 1, None, 200, analysed=True),
    "paper-resnet18": Suite("cifar10-resnet18", PAPER, "cifar10-jpeg", 1, None, None),
    "paper-wrn": Suite("cifar10-wrn-34-10", PAPER, "cifar10-jpeg", 1, None, None),
    "paper-ablation": Suite(
        "cifar10-resnet18", (*ABLATIONS, "arat", *DISTILLED), "cifar10-jpeg", 1, None, None, analysed=True
    ),
}


@dataclass(frozen=True)
class SuiteTraining:
    """One training of a suite."""

    method: str
    """as result rows call it; an ablation is `arat/<name>`, a longer training `<method>/longer`"""
    config: Config
    out: Path

    @property
    def name(self) -> str:
        """Of its directory, with the seed."""
        return self.out.name


def entries(
    suite: Suite,
    methods: tuple[str, ...],
    data: str | None,
    *,
    num_seeds: int,
    runs: Path,
    fidelity: Fidelity = "paper",
) -> Iterator[SuiteTraining]:
    """The suite's trainings of these `methods`, seed by seed, in the suite's order.

    ARREST's begins with the net of `standard` of the same seed.
    """
    mark = "" if fidelity == "paper" else f"-{fidelity}"
    if suite.num_train_images is not None:
        mark += f"-{suite.num_train_images}"
    alike = recipe(f"{suite.family}-at", fidelity)
    for seed, method, dtype in product(range(num_seeds), suite.methods, suite.dtypes):
        if method not in methods:
            continue
        epochs = suite.longer.get(method, alike.epochs)
        history = max(epochs // suite.snapshots, 1) if suite.snapshots else 0
        trained_by = "arat" if method in ABLATIONS else method.removesuffix(LONGER)
        config = recipe(f"{suite.family}-{trained_by}", fidelity)
        if isinstance(config.method, ARATConfig) and method in ABLATIONS:
            config = replace(config, method=replace(config.method, **ABLATIONS[method]))
        if isinstance(config.method, ARRESTConfig):
            teacher = runs / f"{suite.family}-standard{mark}-seed{seed}"
            config = replace(config, method=replace(config.method, teacher=str(teacher)))
        config = replace(
            config,
            epochs=epochs,
            schedule=alike.schedule,
            seed=seed,
            data=data or suite.data,
            checkpoint=replace(config.checkpoint, history=history),
            dtype=dtype,
        )
        if suite.num_train_images is not None:
            config = replace(config, num_train_images=suite.num_train_images, num_validation_images=0)
        name = f"arat/{method}" if method in ABLATIONS else method.replace(LONGER, "/longer")
        if dtype != "auto":
            name, method = f"{name}/{dtype}", f"{method}-{dtype}"
        yield SuiteTraining(name, config, runs / f"{suite.family}-{method}{mark}-seed{seed}")


def shared(trainings: list[SuiteTraining], number: int, of: int) -> list[SuiteTraining]:
    """Those of the `number`-th (from 1) of `of` processes that share a suite, in their order; a training lies with the
    one whose net it starts from."""

    def start(training: SuiteTraining) -> Path:
        method = training.config.method
        return Path(method.teacher) if isinstance(method, ARRESTConfig) else training.out

    starts = list(dict.fromkeys(map(start, trainings)))
    mine = set(starts[number - 1 :: of])
    return [training for training in trainings if start(training) in mine]
