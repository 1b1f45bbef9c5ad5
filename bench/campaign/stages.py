"""The stages of a campaign, in their order: each a command with its share of the time."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from bench.campaign.checks import CAPTURED_STEP, TESTS, gpu_tests, kernel_tests
from bench.common.inputs import METHODS
from bench.common.rows import Row
from bench.kernels import report as kernels
from bench.kernels.cases import measured
from bench.ladder import report as ladder
from bench.ladder.variants import NAMES
from bench.loaders import report as loaders
from bench.robustness import one_training
from bench.startup import report as startup

BUDGET = "{budget}"
"""in a command: the seconds that the benchmark may measure"""
LADDER_GRACE_S = 30
"""of a ladder's time: told to end, it times what is ready in about 20 s"""
ENVIRONMENT_S = 180
"""of the first stage: doctor takes a captured step, which from a cold cache compiles for a minute on two cores"""
RECIPE, SMOKE_RECIPE = "cifar10-resnet18-arat", "digits-arat"
LADDER_METHODS = ("arat", "at")
SMOKE_METHODS = ("trades", "lbgat")
"""of the others: another objective of the attack, and two nets"""
SMOKE_MODELS = {"resnet18": "digits", "wrn-34-10": "tiny"}


@dataclass(frozen=True)
class CampaignSetting:
    """What the stages of one campaign share; all paths are absolute."""

    out: Path
    runs: Path
    """where trainings of this commit lie"""
    data: str | None
    dataset: str
    """what rows of speed call the data"""
    golden: Path | None
    device: str
    smoke: bool

    def rows(self, benchmark: str) -> tuple[str, str]:
        """The flag for where a benchmark's rows go."""
        return "--rows", str(self.out / f"{benchmark}.jsonl")

    def flags(self, with_data: bool = True) -> list[str]:
        """The flags for device, smoke and data."""
        data = ["--data", self.data] if self.data and with_data else []
        return ["--device", self.device, *(["--smoke"] if self.smoke else []), *data]


@dataclass(frozen=True)
class Stage:
    """One process of a campaign."""

    name: str
    command: tuple[str, ...]
    seconds: float
    """the most it may take, `grace` included: what has more and does not end has failed"""
    least: float = 20
    """with less time left it is not begun"""
    covers: tuple[Row, ...] = ()
    """fields of the rows that it makes: where there is such a row for each, and it is right, it is done"""
    headline: Callable[[Sequence[Row]], str] | None = None
    """what those rows say in a line; None: the last line of its output"""
    lacks: str = ""
    """why it cannot run here"""
    brings: tuple[str, ...] = ()
    """patterns of the files, under the trainings, that --out gets"""
    goes_on: bool = False
    """SIGTERM makes it save what it has, and the next call goes on from there: it may take longer than one call"""
    grace: float = 0
    """the last seconds of its time: SIGTERM comes before them, and makes it finish what it has begun"""
    is_of_call: bool = False
    """it runs in every call"""


def stages(setting: CampaignSetting) -> list[Stage]:
    """All stages of a campaign, the most wanted first."""
    return [
        _environment(setting),
        _correctness(),
        _golden(setting),
        _throughput(setting, "resnet18", (128,), variants=("published", "strong", "default")),
        _throughput(setting, "resnet18", (256, 512, 1024), variants=("default", "strong")),
        _throughput(setting, "wrn-34-10", (128,), variants=("published", "strong", "default")),
        *(_kernels(setting, name) for name in measured()),
        _profile(setting),
        _startup(setting),
        _loaders(setting),
        *_trainings(setting),
        _other_methods(setting),
        *_gpu_tests(setting),
        _kernel_tests(setting),
        _rest(setting),
    ]


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def _benchmark(setting: CampaignSetting, name: str, *flags: str, with_data: bool = True) -> tuple[str, ...]:
    """A benchmark that ends in time, and leaves out what has rows."""
    resume = () if name == "kernels" else ("--resume",)
    return _python(f"bench.{name}", *setting.flags(with_data), "--budget", BUDGET, *setting.rows(name), *resume, *flags)


def _environment(setting: CampaignSetting) -> Stage:
    command = _python("bench.campaign.machine", "--device", setting.device, *setting.rows("campaign"))
    return Stage("environment", command, ENVIRONMENT_S, 0, is_of_call=True)


def _pytest(*tests: str) -> tuple[str, ...]:
    return _python("pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *tests)


def _correctness() -> Stage:
    """A case of each kernel and one captured step: from cold caches all tests of a GPU compile for ten minutes."""
    return Stage("correctness", _pytest(*kernel_tests(), CAPTURED_STEP), 240, lacks=_without_pytest())


def _gpu_tests(setting: CampaignSetting) -> list[Stage]:
    """The tests of a GPU's steps and attacks, each file in a time of its own."""
    lacks = "left out by --smoke" if setting.smoke else _without_pytest()
    files = sorted((TESTS / "gpu").glob("test_*.py"))
    return [Stage(file.stem.replace("_", " "), _pytest(str(file)), 600, lacks=lacks) for file in files]


def _kernel_tests(setting: CampaignSetting) -> Stage:
    """All other tests of a GPU. What they compile is kept: a call that is too short for them helps the next."""
    others = [path for path in gpu_tests() if not Path(path).is_relative_to(TESTS / "gpu")]
    # Compiling ahead of time needs no GPU, and takes minutes.
    command = _pytest(f"--ignore={TESTS / 'kernels' / 'test_aot.py'}", *others)
    lacks = "left out by --smoke" if setting.smoke else _without_pytest()
    return Stage("kernel tests", command, 600, lacks=lacks)


def _without_pytest() -> str:
    return "" if find_spec("pytest") else "pytest is not installed"


def _golden(setting: CampaignSetting) -> Stage:
    command = _python("bench.campaign.golden", str(setting.golden), "--device", setting.device)
    return Stage("golden vectors", command, 120, lacks="" if setting.golden else "no --golden FOLDER")


def _throughput(setting: CampaignSetting, model: str, batches: Sequence[int], *, variants: Sequence[str]) -> Stage:
    """AR-AT at these batches; a smoke run takes a small net, and a sixteenth of the first batch.

    A smoke run leaves `strong`, which compiles for half a minute, to the rest of the ladder.
    """
    if setting.smoke:
        model, batches = SMOKE_MODELS[model], [batches[0] // 16]
        variants = [name for name in variants if name != "strong"]
    name = f"{model}, batch {', '.join(map(str, batches))}"
    return _ladders(setting, name, 300, models=(model,), methods=("arat",), batches=batches, variants=variants)


def _other_methods(setting: CampaignSetting) -> Stage:
    """The default of every method that no other ladder has."""
    model, batch = ("digits", 8) if setting.smoke else ("resnet18", 128)
    others = SMOKE_METHODS if setting.smoke else [method for method in METHODS if method not in LADDER_METHODS]
    of = {"models": (model,), "methods": others, "batches": (batch,), "variants": ("default",)}
    return replace(_ladders(setting, "other methods", 600, **of), goes_on=True)


def _rest(setting: CampaignSetting) -> Stage:
    models, batches = (("digits",), (8,)) if setting.smoke else (("resnet18", "wrn-34-10"), (128, 256, 512, 1024))
    methods = LADDER_METHODS[:1] if setting.smoke else LADDER_METHODS
    of = {"models": models, "methods": methods, "batches": batches, "variants": NAMES}
    return replace(_ladders(setting, "rest of the ladder", 1800, **of), goes_on=True)


def _ladders(setting: CampaignSetting, name: str, seconds: float, **of: Sequence[str] | Sequence[int]) -> Stage:
    """The ladders of all these models, methods and batches, of each these variants."""
    flags = {"models": "--model", "methods": "--method", "batches": "--batch", "variants": "--variants"}
    given = [text for kind, flag in flags.items() for text in (flag, *map(str, of[kind]))]
    every = {"benchmark": "throughput", "dataset": setting.dataset}
    cells = product(*(of[kind] for kind in flags))
    return Stage(
        name,
        _benchmark(setting, "throughput", *given),
        seconds,
        2 * LADDER_GRACE_S,
        tuple(every | dict(zip(("model", "method", "batch", "variant"), cell, strict=True)) for cell in cells),
        ladder.headline,
        grace=LADDER_GRACE_S,
    )


def _kernels(setting: CampaignSetting, name: str) -> Stage:
    dtype = "fp32" if setting.device == "cpu" else "bf16"
    command = _benchmark(setting, "kernels", "--kernels", name, "--dtype", dtype, with_data=False)
    covers = ({"benchmark": "kernels", "kernel": name, "dtype": dtype},)
    return Stage(f"kernel {name}", command, 150, 30, covers, kernels.headline)


def _profile(setting: CampaignSetting) -> Stage:
    recipe, steps = (SMOKE_RECIPE, "1") if setting.smoke else (RECIPE, "5")
    flags = ["--out", str(setting.runs / "profile"), "--profile", steps, *setting.flags()]
    # What profile.txt says stands in profile.json: --out takes few files.
    brings = tuple(f"profile/*/profile/{name}" for name in ("trace.json.gz", "profile.json"))
    return Stage("profile", _python("bench.robustness.one_training", recipe, *flags), 180, 40, brings=brings)


def _startup(setting: CampaignSetting) -> Stage:
    kinds = [{"case": "import", "module": "fastarat.training.train"}, {"cache": "cold"}, {"cache": "warm"}]
    covers = tuple({"benchmark": "startup", **kind} for kind in kinds)
    return Stage("startup", _benchmark(setting, "startup", with_data=False), 300, 60, covers, startup.headline)


def _loaders(setting: CampaignSetting) -> Stage:
    """How much of the default step passes in waiting for data: resident, and beside it PIL in worker processes."""
    names, workers = ("resident", "plain"), "1" if setting.smoke else "8"
    flags = ["--kinds", "small", "--stored", "raw", "--loaders", *names, "--workers", workers, "--repeats", "2"]
    every = {"benchmark": "loaders", "dataset": setting.dataset, "stage": "training", "stored": "raw"}
    covers = tuple({**every, "loader": name} for name in names)
    return Stage("loaders", _benchmark(setting, "loaders", *flags), 400, 60, covers, loaders.headline)


def _trainings(setting: CampaignSetting) -> list[Stage]:
    """AR-AT and AT, as the paper compares them: each a training, then AutoAttack on what it deploys."""
    found = []
    for method in ("arat", "at"):
        training = _training(setting, method)
        found += [training, _autoattack(training, method, 2 if setting.smoke else 10_000)]
    return found


def _training(setting: CampaignSetting, method: str) -> Stage:
    recipe, suite = (f"digits-{method}", "smoke") if setting.smoke else (f"cifar10-resnet18-{method}", "paper-resnet18")
    flags = ["--out", str(setting.runs / recipe), *setting.rows("robustness"), "--suite", suite, *setting.flags()]
    return Stage(
        f"training {method}",
        _python("bench.robustness.one_training", recipe, *flags),
        1800,
        60,
        ({"benchmark": "robustness", "suite": suite, "method": method},),
        one_training.headline,
        lacks="" if setting.data or setting.smoke else "no --data",
        goes_on=True,
    )


def _autoattack(trained: Stage, method: str, num_images: int) -> Stage:
    """Its row takes the place of the training's own."""
    command = (*trained.command, "--num-autoattack", str(num_images))
    covers = tuple({**fields, "num_autoattack": num_images} for fields in trained.covers)
    return replace(trained, name=f"autoattack {method}", command=command, covers=covers)
