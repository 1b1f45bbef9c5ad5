"""`fastarat analyze RUN`: what a trained run looks like inside, as JSON and as pictures."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastarat.commands.parsing import Printed, parse, require_positive
from fastarat.commands.several import started, world_of
from fastarat.common.console import notice, print_json, print_table, progress, stdout
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import write_text
from fastarat.common.json_files import has_fields

if TYPE_CHECKING:
    from fastarat.analysis import Analysis
    from fastarat.common.distributed import World

PICTURES = ("conflict", "mixture", "features", "surface", "perturbations", "gallery")
FILES = ("analysis.json", *(f"{name}.png" for name in PICTURES))


@dataclass(frozen=True)
class AnalyzeArguments(Printed):
    """Look inside a run: gradient conflict, batch statistics, features, loss surface, perturbations.

    Measures the last and the best checkpoint, and every snapshot that --checkpoint.history kept in training.
    For example: fastarat analyze runs/digits-arat --num-images 500
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """a run's directory"""
    num_images: int = 200
    """test images, chosen by the seed, whose features and perturbations are looked at"""
    batches: int = 4
    """training batches over which conflicts and statistics are averaged"""
    epochs: tuple[int, ...] = ()
    """of the snapshots, only those of these epochs; default all"""
    data: str | None = None
    """where the images lie now; default where the run found them"""
    seed: int = 0
    """choice of images, attack starts and random directions"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""
    gpus: int = 0
    """processes that share the states, one a GPU"""
    procs: int = 0
    """processes that share the states on the CPU"""
    nodes: int = 1
    """machines that share the states, each with --gpus or --procs processes; the same command runs on each"""
    rendezvous: str = ""
    """HOST:PORT of one of several machines, where they find each other; that one writes and reports"""
    out: Path | None = None
    """directory for analysis.json and the pictures; default RUN/analysis"""


def run(args: list[str]) -> int:
    """Analyse, write JSON and pictures, and print a table of the summary, or JSON."""
    arguments = parse(AnalyzeArguments, args, "fastarat analyze")
    require_positive(arguments, "num_images", "batches")
    if not 0 <= arguments.seed < 2**31:
        raise UserError(f"--seed {arguments.seed}: give 0 or more, below 2^31")
    if (code := started(arguments, ["analyze", *args], arguments.nodes, arguments.rendezvous)) is not None:
        return code
    with world_of(arguments) as world:
        _analyse(arguments, world)
    return 0


def _analyse(arguments: AnalyzeArguments, world: "World") -> None:
    from fastarat.analysis import whole_analysis
    from fastarat.analysis.snapshots import kept_states
    from fastarat.common.memory import memory_that_ran_out
    from fastarat.runs.run import Run

    kept = kept_states(Run(arguments.run), arguments.epochs)
    _check_alike(arguments, [state.name for state in kept], world)
    out = arguments.out or arguments.run / "analysis"
    if world.is_main:
        _make(out, is_own=arguments.out is None)
    try:
        with progress("analysing, in percent", 100) as advance:
            analysis = whole_analysis(
                arguments.run,
                world,
                num_images=arguments.num_images,
                batches=arguments.batches,
                seed=arguments.seed,
                data=arguments.data,
                epochs=arguments.epochs,
                advance=advance,
            )
    except (RuntimeError, MemoryError) as error:
        if memory := memory_that_ran_out(error):
            raise WorkError(f"out of {memory}: give fewer --num-images, or another --device") from error
        raise
    if not world.is_main:
        return
    _write(out, analysis)
    if arguments.json:
        print_json({"run": str(arguments.run), "out": str(out), **analysis.result["summary"]})
    else:
        _print(analysis.result)
        notice(f"{out}: analysis.json and pictures")


def _check_alike(arguments: AnalyzeArguments, states: list[str], world: "World") -> None:
    """Raise `UserError` unless all processes have the same run and settings: each machine may have its own disk."""
    from fastarat.common.distributed import decided
    from fastarat.runs.run import Run

    if world.size == 1:
        return
    # No two trainings have the same metrics, which have times in them; one that still trains adds lines.
    run, settings = Run(arguments.run), (arguments.num_images, arguments.batches, arguments.seed)
    mine = repr((states, settings, run.config(), run.metrics()[:1]))
    if decided(lambda: mine, world) != mine:
        raise UserError(
            f"process {world.rank} has another run or other settings than the first one: give all machines the same"
        )


def _make(out: Path, is_own: bool) -> None:
    """Make the directory, and see that it can be written before there is anything to write.

    `is_own`: it is the run's own place for an earlier analysis, which this one replaces. Raises `UserError` if it
    cannot be written, or holds files of these names that no analysis has made.
    """
    there = [name for name in FILES if os.path.lexists(out / name)]
    if there and not is_own and not has_fields(out / FILES[0], "run", "states", "summary"):
        raise UserError(f"{out} holds a {there[0]} that is no analysis: give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; give another --out") from error


def _write(out: Path, analysis: "Analysis") -> None:
    import json

    from fastarat.analysis.pictures import images, layers

    write_text(out / FILES[0], json.dumps(analysis.result, indent=1) + "\n")
    pictures = (
        (layers.conflict_picture, analysis.result),
        (layers.mixture_picture, analysis.result),
        (layers.features_picture, analysis.result),
        (images.surface_picture, analysis),
        (images.perturbations_picture, analysis),
        (images.gallery_picture, analysis),
    )
    for name, (draw, shown) in zip(FILES[1:], pictures, strict=True):
        draw(out / name, shown)  # type: ignore[operator]


COLUMNS = {
    "gradient_conflict": "conflict",
    "naive_conflict": "naive",
    "clean_adversarial_conflict": "clean-adv",
    "mixture_distance": "mixture",
    "feature_cosine": "features",
    "branch_cosine": "branches",
    "spread": "spread",
    "spread_adversarial": "adv spread",
}


def _print(result: dict[str, Any]) -> None:
    from fastarat.runs.metrics import doubts

    rows = []
    for state in result["states"]:
        values = [state["means"][name] for name in COLUMNS]
        others = ", ".join(name for name in state["names"] if not name.startswith("epoch"))
        epoch = f"{state['epoch']:.4g}" + (f" ({others})" if others else "")
        rows.append([epoch, *("-" if value is None else f"{value:.3f}" for value in values)])
    print_table(f"{result['run']}: {result['method']} on {result['data']}", ["epoch", *COLUMNS.values()], rows)
    summary, attack = result["summary"], result["test_attack"]
    batches = f"{result['batches']} batch{'es' if result['batches'] > 1 else ''}"
    stdout.print(
        "conflict, naive, clean-adv: cosine of gradients (1 agree, below 0 conflict), mean over convolutions, linear "
        f"layers, {batches} of {result['batch']};\n"
        "mixture: distance of clean and adversarial batch statistics in deviations; features, branches: cosine of "
        "clean and adversarial features;\nspread: of normalised features (1 isotropic, 0 collapsed); means over "
        f"{', '.join(result['aligned_layers'])}.\n"
        f"deployed model on {result['num_images']} test images: clean {summary['clean_percent']:.1f} %, "
        f"PGD-{attack['steps']} at eps {attack['eps_255']:g}/255 {summary['pgd20_percent']:.1f} %{doubts(summary)}"
    )
