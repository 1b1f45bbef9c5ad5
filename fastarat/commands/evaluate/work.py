"""What `fastarat eval` does between its flags and its report."""

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastarat.common.console import notice, progress
from fastarat.common.errors import Interrupted, UserError, WorkError, first_line
from fastarat.common.signals import number_of
from fastarat.config.attack import USUAL_EPS_255, too_large
from fastarat.config.evaluation import EvaluationSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fastarat.commands.evaluate.arguments import EvalArguments
    from fastarat.common.distributed import World
    from fastarat.data.images.dataset import Dataset
    from fastarat.evaluation.result import Evaluation
    from fastarat.runs.weights import Description

SAME = ("seed", "batch", "targets", "steps", "restarts", "dtype", "engine")
"""the flags that are settings of the same name"""


class Work:
    """One evaluation: model, images, attack and the place of its state, all checked."""

    def __init__(self, arguments: "EvalArguments", world: "World"):
        from fastarat.data.images.classes import are_numbers, in_order_of
        from fastarat.data.images.copies import warnings_of
        from fastarat.data.images.dataset import subset
        from fastarat.data.open import open_dataset, open_for_evaluation
        from fastarat.evaluation.autoattack.checks import check_attacks, check_model
        from fastarat.evaluation.evaluate import as_images
        from fastarat.models.batch_norm import to_mode
        from fastarat.runs.deployed import images_of

        self.arguments, self.world = arguments, world
        asked = _asked(arguments)
        check_attacks(asked.names)
        self.device = world.device
        # Before they are read: a training that goes on may deploy others meanwhile.
        self.weights = _deployed_digest(arguments)
        model, description = _model(arguments)
        self.model = to_mode(model.to(self.device), training=False)
        norm, self.eps_255 = _threat(arguments, description)
        self.settings = replace(asked, norm=norm, eps=self.eps_255 / 255)
        for said in self.settings.doubts():  # before hours of work; the result says it too
            notice(said)
        if arguments.data is None and description is None:
            raise UserError(f"--data: {arguments.model} does not say which images it is for; name a data set")
        if description is None:
            self.data = open_dataset(str(arguments.data))
            for line in warnings_of(self.data):
                notice(line)
            if not are_numbers(self.data.classes):
                by_number = f"by number, since {arguments.model} has no names for them"
                self.data = replace(self.data, matched=by_number)
        else:
            data = arguments.data or images_of(Path(arguments.model), description)
            self.data = open_for_evaluation(data, description.image_size, description.central_share)
            _fits(self.data, description.image_shape, description.num_classes)
            fix = "give the --data it was trained on, or call them the same"
            self.data = in_order_of(self.data, description.classes, arguments.model, fix)
        if self.data.matched:
            notice(f"classes of {self.data.name}: {self.data.matched}")
        if not len(self.data.test.labels):
            raise UserError(f"{self.data.name} has no test images: give --data a set of the same classes that has some")
        self.chosen = subset(self.data.decoded_test, arguments.num_images, arguments.seed)
        self.images, self.labels = as_images(self.chosen, self.data.max_value)
        first, attacks = self.images[:2].to(self.device), self.settings.names
        check_model(self.model, first, len(self.data.classes), attacks=attacks)
        self.state = self._state()

    def check_alike(self) -> None:
        """Raise `UserError` unless all processes have the same model, images and settings: each machine may have a disk
        of its own."""
        from fastarat.common.distributed import decided

        if self.world.size > 1 and decided(self._identity, self.world) != self._identity():
            raise UserError(
                f"process {self.world.rank} has another model, other images or other settings than the first one: give "
                "all machines the same"
            )

    def evaluate(self) -> "Evaluation":
        """The result, complete or not. Raises `Interrupted` if a signal ends it."""
        from fastarat.evaluation.autoattack.conduct import Conduct
        from fastarat.evaluation.evaluate import evaluate_as

        done = len(list(self.state.glob("?-*.safetensors"))) if self.state else 0
        if done:
            notice(f"going on from {self.state}: {done} batch{'es are' if done > 1 else ' is'} done")
        try:
            with progress("evaluating", len(self.labels)) as advance:
                conduct = Conduct(self.state, self.arguments.budget, advance, self.world)
                return evaluate_as(conduct, self.model, self.images, self.labels, self.settings, self.device)
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted; {self._goes_on()}", number_of(error)) from error
        finally:
            self._leave_no_empty_directory()

    def breaks(self, evaluation: "Evaluation") -> "torch.Tensor":
        """Which adversarial images (bool [M]) are misclassified in one more pass, and lie in [0, 1] and in the ball."""
        import torch

        from fastarat.evaluation.autoattack.driver import confirmed
        from fastarat.evaluation.autoattack.prepared_model import prepared
        from fastarat.evaluation.autoattack.state import as_numbers

        found = [torch.ones(0, dtype=torch.bool)]
        with prepared(self.model, as_numbers(self.images[:2]).to(self.device)) as logits_of:
            for part in torch.arange(len(evaluation.rows)).split(self.arguments.batch):
                rows = evaluation.rows[part]
                x, x_adv = as_numbers(self.images[rows]), evaluation.x_adv[part]
                x, x_adv, y = (given.to(self.device) for given in (x, x_adv, self.labels[rows]))
                wrong, inside, _ = confirmed(logits_of, x, x_adv, y, evaluation.norm, evaluation.eps)
                found.append((wrong & inside).cpu())
        return torch.cat(found)

    def finish(self, evaluation: "Evaluation") -> None:
        """Forget the state of a complete evaluation, if its place was not asked for. Raises `WorkError` for others."""
        if evaluation.stopped:
            raise WorkError(f"--budget {self.arguments.budget:g} s: {evaluation.stopped}; {self._goes_on()}")
        self._keep_outcomes(evaluation)
        if self.state is not None and self.arguments.state is None:
            shutil.rmtree(self.state, ignore_errors=True)
            self._leave_no_empty_directory()

    def _keep_outcomes(self, evaluation: "Evaluation") -> None:
        """Of a run's deployed weights: what each image came to, for comparisons and the report."""
        from fastarat.evaluation.outcomes import keep, outcomes_of

        if not (self.settings.names and self.weights):
            return
        try:
            outcomes = outcomes_of(evaluation, self.settings, self.data, self.chosen, self.weights)
            keep(Path(self.arguments.model), outcomes)
        except (OSError, WorkError) as error:
            notice(f"what each image came to is not kept for comparisons ({first_line(error)})")

    def _leave_no_empty_directory(self) -> None:
        if self.state is not None and self.arguments.state is None:
            for folder in (self.state, self.state.parent):
                with suppress(OSError):
                    folder.rmdir()

    def _goes_on(self) -> str:
        if self.state is None:
            return "nothing is kept of it: give --state DIR"
        return f"what is done is kept in {self.state}, and the same command goes on from there"

    def _state(self) -> Path | None:
        """The directory asked for; else one beside the model, named by all that the result depends on."""
        if self.arguments.state is not None or not self.settings.names:
            return self.arguments.state
        path = Path(self.arguments.model)
        beside = path if path.is_dir() else path.parent if path.is_file() else Path()
        state = beside / "evaluations" / f"{self.settings.names[0]}-{self.settings.norm}-{self._identity()[:12]}"
        try:
            state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            notice(
                f"nothing is kept of an interruption ({state.parent}: {error.strerror}); --state DIR gives it a place"
            )
            return None
        return state

    def _identity(self) -> str:
        """A checksum of all that the result depends on."""
        from fastarat.evaluation.autoattack.state import FORMAT
        from fastarat.evaluation.evaluate import weights_of

        # The weights say which model of a file or run it is, but not what a function of one's own does with them.
        name = "" if Path(self.arguments.model).exists() else self.arguments.model
        settings = json.dumps({"format": FORMAT, **asdict(self.settings)}, sort_keys=True)
        what = [name, settings, self.data.fingerprint, str(len(self.labels)), weights_of(self.model)]
        return hashlib.sha256("\n".join(what).encode()).hexdigest()


def _asked(arguments: "EvalArguments") -> EvaluationSettings:
    """The settings but for the threat model, with cw as the name of pgd on the margin."""
    same = {name: getattr(arguments, name) for name in SAME}
    step = None if arguments.step_255 is None else arguments.step_255 / 255
    names = arguments.attack.split(",")
    if arguments.objective == "margin":
        names = ["cw" if name == "pgd" else name for name in names]
    return EvaluationSettings(",".join(names), step=step, **same)


def _model(arguments: "EvalArguments") -> "tuple[nn.Module, Description | None]":
    from fastarat.models.foreign import import_model
    from fastarat.runs.deployed import load_deployed

    if ":" in arguments.model and not Path(arguments.model).exists():
        if arguments.checkpoint is not None or arguments.branch != "adv":
            raise UserError(f"{arguments.model} is one net: --checkpoint and --branch need a run's directory")
        return import_model(arguments.model), None
    return load_deployed(Path(arguments.model), arguments.checkpoint, arguments.branch)


def _deployed_digest(arguments: "EvalArguments") -> str:
    """Of the weights that a run deploys, if it is these that are asked for; else empty."""
    from fastarat.evaluation.outcomes import weights_digest

    run, is_deployed = Path(arguments.model), arguments.checkpoint is None and arguments.branch == "adv"
    return weights_digest(run) if is_deployed and (run / "config.json").exists() else ""


def _threat(arguments: "EvalArguments", description: "Description | None") -> tuple[Any, float]:
    norm, eps_255 = (description.norm, description.eps_255) if description else ("linf", USUAL_EPS_255["linf"])
    if arguments.norm not in (None, norm) and arguments.eps_255 is None and arguments.attack != "none":
        whose = f"the model was trained for {norm}" if description else f"eps is known for {norm} alone"
        raise UserError(f"--norm {arguments.norm}: {whose}; give --eps-255 too")
    norm, eps_255 = arguments.norm or norm, eps_255 if arguments.eps_255 is None else arguments.eps_255
    if wrong := too_large("--eps-255", norm, eps_255):
        raise UserError(wrong[0])
    return norm, eps_255


def _fits(dataset: "Dataset", image_shape: tuple[int, int, int], num_classes: int) -> None:
    height, width, channels = dataset.image_shape
    if (channels, height, width) != image_shape or len(dataset.classes) != num_classes:
        raise UserError(
            f"{dataset.name} has {len(dataset.classes)} classes of {channels}x{height}x{width} images, the model "
            f"was made for {num_classes} of {'x'.join(map(str, image_shape))}: give the --data it was trained on"
        )
