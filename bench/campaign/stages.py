"""The stages of a campaign, in their order: each a command with its share of the time."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from bench.campaign.checks import TESTS, gpu_tests, kernel_tests
from bench.common.inputs import METHODS
from bench.common.rows import Row
from bench.kernels import report as kernels
from bench.kernels.registry import measured
from bench.ladder import report as ladder
from bench.ladder.variants import NAMES
from bench.loaders import report as loaders
from bench.robustness import one_training
from bench.startup import report as startup

BUDGET = "{budget}"
"""in a command: the seconds that the benchmark may measure"""
LADDER_GRACE_S = 30
"""of a ladder's time: told to end, it times what is ready in about 20 s"""
RECIPE, SMOKE_RECIPE = "cifar10-resnet18-arat", "digits-arat"
LADDER_METHODS = ("arat", "at")
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
        _correctness(setting),
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
        _kernel_tests(setting),
        _ladder(setting),
    ]


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def _environment(setting: CampaignSetting) -> Stage:
    command = _python("bench.campaign.machine", "--device", setting.device, *setting.rows("campaign"))
    return Stage("environment", command, 60, 0, is_of_call=True)


def _pytest(*tests: str) -> tuple[str, ...]:
    return _python("pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *tests)


def _correctness(setting: CampaignSetting) -> Stage:
    command = _pytest(str(TESTS / "gpu"), *kernel_tests())
    return Stage("correctness", command, 240, lacks=_without("pytest"))


def _kernel_tests(setting: CampaignSetting) -> Stage:
    """All other tests of a GPU. What they compile is kept: a call that is too short for them helps the next."""
    others = [path for path in gpu_tests() if not Path(path).is_relative_to(TESTS / "gpu")]
    # Compiling ahead of time needs no GPU, and takes minutes.
    command = _pytest(f"--ignore={TESTS / 'kernels' / 'test_aot.py'}", *others)
    lacks = "left out by --smoke" if setting.smoke else _without("pytest")
    return Stage("kernel tests", command, 600, lacks=lacks)


def _without(package: str) -> str:
    return "" if find_spec(package) else f"{package} is not installed"


def _golden(setting: CampaignSetting) -> Stage:
    command = _python("bench.campaign.golden", str(setting.golden), "--device", setting.device)
    return Stage("golden vectors", command, 120, lacks="" if setting.golden else "no --golden FOLDER")


def _throughput(setting: CampaignSetting, model: str, batches: Sequence[int], *, variants: Sequence[str]) -> Stage:
    """AR-AT at these batches; a smoke run takes a small net, and a sixteenth of the first batch."""
    if setting.smoke:
        model, batches = SMOKE_MODELS[model], [batches[0] // 16]
    name = f"{model}, batch {', '.join(map(str, batches))}"
    flags = ["--model", model, "--method", "arat", "--batch", *map(str, batches), "--variants", *variants]
    return Stage(
        name,
        _python("bench.throughput", *_measuring(setting, "throughput"), *flags, *_data(setting)),
        300,
        2 * LADDER_GRACE_S,
        _ladder_rows(setting, (model,), ("arat",), batches=batches, variants=variants),
        ladder.headline,
        grace=LADDER_GRACE_S,
    )


def _other_methods(setting: CampaignSetting) -> Stage:
    """The default of every method that no other ladder has."""
    model, batch = ("digits", 8) if setting.smoke else ("resnet18", 128)
    methods = [method for method in METHODS if method not in LADDER_METHODS]
    flags = ["--model", model, "--method", *methods, "--batch", str(batch), "--variants", "default"]
    command = _python("bench.throughput", *_measuring(setting, "throughput"), *flags, *_data(setting))
    covers = _ladder_rows(setting, (model,), methods, batches=(batch,), variants=("default",))
    options = {"goes_on": True, "grace": LADDER_GRACE_S}
    return Stage("other methods", command, 600, 2 * LADDER_GRACE_S, covers, ladder.headline, **options)


def _measuring(setting: CampaignSetting, benchmark: str) -> list[str]:
    flags = ["--device", setting.device, "--budget", BUDGET, *setting.rows(benchmark)]
    flags += [] if benchmark == "kernels" else ["--resume"]
    return [*flags, *(["--smoke"] if setting.smoke else [])]


def _data(setting: CampaignSetting) -> list[str]:
    return ["--data", setting.data] if setting.data else []


def _kernels(setting: CampaignSetting, name: str) -> Stage:
    dtype = "fp32" if setting.device == "cpu" else "bf16"
    flags = ["--kernels", name, "--dtype", dtype]
    return Stage(
        f"kernel {name}",
        _python("bench.kernels", *_measuring(setting, "kernels"), *flags),
        150,
        30,
        ({"benchmark": "kernels", "kernel": name, "dtype": dtype},),
        kernels.headline,
    )


def _profile(setting: CampaignSetting) -> Stage:
    recipe, steps = (SMOKE_RECIPE, "1") if setting.smoke else (RECIPE, "5")
    flags = ["--device", setting.device, "--profile", steps, *_data(setting), *(["--smoke"] if setting.smoke else [])]
    return Stage(
        "profile",
        _python("bench.robustness.one_training", recipe, "--out", str(setting.runs / "profile"), *flags),
        180,
        40,
        # What profile.txt says stands in profile.json: --out takes few files.
        brings=tuple(f"profile/*/profile/{name}" for name in ("trace.json.gz", "profile.json")),
    )


def _startup(setting: CampaignSetting) -> Stage:
    covers = [
        {"case": "import", "module": "fastarat.training.train"},
        *({"cache": cache} for cache in ("cold", "warm")),
    ]
    return Stage(
        "startup",
        _python("bench.startup", *_measuring(setting, "startup")),
        300,
        60,
        tuple({"benchmark": "startup", **cover} for cover in covers),
        startup.headline,
    )


def _loaders(setting: CampaignSetting) -> Stage:
    """How much of the default step passes in waiting for data: resident, and beside it PIL in worker processes."""
    names, workers = ("resident", "plain"), "1" if setting.smoke else "8"
    flags = ["--kinds", "small", "--stored", "raw", "--loaders", *names, "--workers", workers, "--repeats", "2"]
    every = {"benchmark": "loaders", "dataset": setting.dataset, "stage": "training", "stored": "raw"}
    return Stage(
        "loaders",
        _python("bench.loaders", *_measuring(setting, "loaders"), *flags, *_data(setting)),
        400,
        60,
        tuple({**every, "loader": name} for name in names),
        loaders.headline,
    )


def _trainings(setting: CampaignSetting) -> list[Stage]:
    """AR-AT and AT, as the paper compares them: each a training, then AutoAttack on what it deploys."""
    found = []
    for method in ("arat", "at"):
        training = _training(setting, method)
        found += [training, _autoattack(training, method, 2 if setting.smoke else 10_000)]
    return found


def _training(setting: CampaignSetting, method: str) -> Stage:
    recipe, suite = (f"digits-{method}", "smoke") if setting.smoke else (f"cifar10-resnet18-{method}", "paper-resnet18")
    flags = ["--device", setting.device, "--suite", suite, *_data(setting), *(["--smoke"] if setting.smoke else [])]
    return Stage(
        f"training {method}",
        _python(
            "bench.robustness.one_training",
            recipe,
            "--out",
            str(setting.runs / recipe),
            *setting.rows("robustness"),
            *flags,
        ),
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


def _ladder(setting: CampaignSetting) -> Stage:
    models, methods, batches = ("resnet18", "wrn-34-10"), LADDER_METHODS, (128, 256, 512, 1024)
    if setting.smoke:
        models, batches = ("digits",), (8,)
    flags = ["--model", *models, "--method", *methods, "--batch", *map(str, batches)]
    command = _python("bench.throughput", *_measuring(setting, "throughput"), *flags, *_data(setting))
    covers = _ladder_rows(setting, models, methods, batches=batches, variants=NAMES)
    options = {"goes_on": True, "grace": LADDER_GRACE_S}
    return Stage("rest of the ladder", command, 1800, 2 * LADDER_GRACE_S, covers, ladder.headline, **options)


def _ladder_rows(
    setting: CampaignSetting,
    models: Sequence[str],
    methods: Sequence[str],
    *,
    batches: Sequence[int],
    variants: Sequence[str],
) -> tuple[Row, ...]:
    names = ("model", "method", "batch", "variant")
    cells = product(models, methods, batches, variants)
    every = {"benchmark": "throughput", "dataset": setting.dataset}
    return tuple({**every, **dict(zip(names, cell, strict=True))} for cell in cells)
