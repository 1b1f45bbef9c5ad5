"""The flags of `fastarat eval`."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastarat.commands.parsing import Printed, require_positive
from fastarat.common.errors import UserError
from fastarat.common.files import require_place
from fastarat.common.json_files import has_fields
from fastarat.config.attack import Norm
from fastarat.config.evaluation import NUM_TARGETS, EngineName, EvaluationDtype

SAVED = ("x", "x_adv", "y", "rows")
"""the arrays that --save writes"""


@dataclass(frozen=True)
class EvalArguments(Printed):
    """Measure a model on test images: clean, and under attack.

    An image counts as robust if no attack breaks it: pgd and cw at any iterate of any start; autoattack is the
    standard's apgd-ce, apgd-t, fab-t and square, and what they find is checked once more. What is interrupted goes on
    with the same command.
    For example: fastarat eval runs/digits-arat --attack autoattack --num-images 1000
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|FILE|MODULE:FUNCTION|FILE.py:FUNCTION")]
    """a run's directory, an exported one, a model.safetensors; or a Python function that returns the net"""
    attack: str = "pgd"
    """none, pgd, cw, autoattack, apgd-ce, apgd-t, fab-t, square; or several, as apgd-ce,square"""
    data: str | None = None
    """data set; default the one it was trained on"""
    num_images: int | None = None
    """test images, chosen by the seed; default all"""
    norm: Norm | None = None
    """threat model; default the one of the training, else linf"""
    eps_255: float | None = None
    """radius of the ball, in 1/255 of the pixel range; default the one of the training, else 8"""
    step_255: float | None = None
    """step size of pgd and cw, in 1/255 of the pixel range; default eps / 4"""
    steps: int = 20
    """gradient steps of pgd and cw"""
    restarts: int = 1
    """random starts of pgd and cw"""
    objective: Literal["cross-entropy", "margin"] = "cross-entropy"
    """what pgd raises; margin is the attack cw"""
    targets: int = NUM_TARGETS
    """wrong classes that apgd-t and fab-t go for; fewer than 9 is named in the result"""
    dtype: EvaluationDtype = "fp32"
    """bf16: attacks search in it, and what they find counts if fp32 confirms it; named in the result"""
    engine: EngineName = "fast"
    """pyautoattack: the attacks of this package, to compare"""
    checkpoint: str | None = None
    """of a run: last, best, or a step's number, instead of the deployed weights"""
    branch: Literal["adv", "clean"] = "adv"
    """of a run's checkpoint: the branch"""
    batch: int = 250
    """images at a time"""
    seed: int = 0
    """attack starts and choice of images"""
    budget: float | None = None
    """seconds after which to stop between batches (exit code 1); the same command then goes on"""
    state: Path | None = None
    """directory that keeps what is done; default one beside the model, which goes once all is done"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""
    gpus: int = 0
    """processes that share the images, one a GPU; the result is that of one"""
    procs: int = 0
    """processes that share the images on the CPU"""
    nodes: int = 1
    """machines that share the images, each with --gpus or --procs processes; the same command runs on each"""
    rendezvous: str = ""
    """HOST:PORT of one of several machines, where they find each other; that one reports"""
    out: Path | None = None
    """write the JSON to this file too"""
    save: Path | None = None
    """write the adversarial images to this .npz: x, x_adv, y, and rows, their places among the images"""


def check(arguments: EvalArguments) -> None:
    """Raise `UserError` for what no evaluation can have."""
    if arguments.save is not None and arguments.save.suffix != ".npz":
        raise UserError(f"--save {arguments.save}: give a name that ends in .npz")
    if arguments.out is not None:
        require_place("--out", arguments.out, is_result)
    if arguments.save is not None:
        require_place("--save", arguments.save, are_images)
    if not 0 <= arguments.seed < 2**64:
        raise UserError(f"--seed {arguments.seed}: give 0 or more, below 2^64")
    require_positive(arguments, "steps", "restarts", "targets", "batch", "num_images")
    if arguments.budget is not None and not arguments.budget > 0:
        raise UserError(f"--budget {arguments.budget:g}: give seconds above 0")
    if arguments.eps_255 is not None and not 0 < arguments.eps_255 < float("inf"):
        raise UserError(f"--eps-255 {arguments.eps_255:g}: give a number above 0; --attack none is clean accuracy")
    if arguments.step_255 is not None and not 0 < arguments.step_255 < float("inf"):
        raise UserError(f"--step-255 {arguments.step_255:g}: give a number above 0; without it a step is eps / 4")


def is_result(path: Path) -> bool:
    """Whether a file is what --out writes."""
    return has_fields(path, "model", "clean", "record")


def are_images(path: Path) -> bool:
    """Whether a file is what --save writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist()) == sorted(f"{name}.npy" for name in SAVED)
    except (OSError, zipfile.BadZipFile):
        return False
