"""The calls that RobustBench's and AutoAttack's users write, run by fastarat: change the import, leave the rest.

from fastarat.robustbench import AutoAttack, benchmark

adversary = AutoAttack(model, norm="Linf", eps=8 / 255, version="standard")
x_adv = adversary.run_standard_evaluation(x, y, bs=250)
clean, robust = benchmark(model, n_examples=1000, dataset="cifar10", threat_model="Linf", eps=8 / 255)
"""

import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastarat.common.console import notice, progress
from fastarat.common.errors import UserError, first_line
from fastarat.common.files import as_file_name, write_text
from fastarat.common.typed import fits, plain
from fastarat.config.attack import Norm
from fastarat.config.evaluation import NUM_TARGETS, STANDARD, EvaluationSettings
from fastarat.data.formats.cifar import ARCHIVES
from fastarat.data.formats.find import FORMATS, find
from fastarat.data.images.dataset import subset
from fastarat.evaluation.accuracies import device_of
from fastarat.evaluation.autoattack.state import as_numbers
from fastarat.evaluation.autoattack.warnings import with_further_start
from fastarat.evaluation.evaluate import as_images, evaluate
from fastarat.evaluation.result import Evaluation

NORMS: dict[str, Norm] = {"Linf": "linf", "L2": "l2"}
VERSIONS = {"standard": STANDARD, "custom": ()}
TARGETED = {"fab": "fab-t", "apgd-dlr": "apgd-t"}
"""attacks that fastarat has in their targeted form alone, which searches harder"""
CUSTOM_RESTARTS = 5
"""of apgd-ce in version custom, as the package has it"""


class Knobs:
    """What scripts set on one of AutoAttack's attacks; all else is as in the standard, and setting it is an error."""

    n_restarts: int
    n_target_classes: int

    def __init__(self, attack: str, **values: int):
        self.__dict__.update(values, _attack=attack)

    def __setattr__(self, name: str, value: Any) -> None:
        there = [known for known in self.__dict__ if known != "_attack"]
        if name not in there:
            raise UserError(f"{self.__dict__['_attack']}.{name} cannot be set here, only {' and '.join(there)}")
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{self.__dict__['_attack']}.{name} is {value!r}: give 1 or more")
        self.__dict__[name] = value


class AutoAttack:
    """AutoAttack on a model in eval mode, from images [N, C, H, W] in [0, 1] to logits [N, K]: a module, or any other
    function of images, which then says nothing of its train mode.

    `attacks_to_run` is for version `custom`; it may be set later, for any version. So may `apgd.n_restarts` (of
    apgd-ce: further random starts for what is left), `apgd_targeted.n_target_classes` and `fab.n_target_classes`.
    `device` None: where the model is, or the images. `seed` None is 0, where the package takes the clock's. What is
    printed is added to the file `log_path`. Raises `UserError` for what fastarat does not have.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: torch.device | str | None = None,
        log_path: Path | str | None = None,
    ):
        if norm not in NORMS:
            raise UserError(f"norm {norm!r}: there is {' and '.join(NORMS)}")
        if version not in VERSIONS:
            raise UserError(f"version {version!r}: there is {' and '.join(VERSIONS)}")
        if attacks_to_run and version != "custom":
            raise UserError(f"attacks_to_run with version {version!r}: give it with version 'custom', and only there")
        if is_tf_model:
            raise UserError("is_tf_model: fastarat attacks models of PyTorch alone")
        self.model, self.epsilon, self.seed = as_module(model), eps, seed or 0
        self.norm, self.version, self.verbose, self.device = norm, version, verbose, device
        self.log_path = None if log_path is None else Path(log_path)
        try:  # before there is anything to add
            if self.log_path is not None:
                self.log_path.open("a").close()
        except OSError as error:
            raise UserError(f"log_path {log_path}: {error.strerror}; give a file in a folder that is there") from error
        self.attacks_to_run = list(attacks_to_run or VERSIONS[version])
        self.apgd = Knobs("apgd", n_restarts=CUSTOM_RESTARTS if version == "custom" else 1)
        self.apgd_targeted = Knobs("apgd_targeted", n_target_classes=NUM_TARGETS)
        self.fab = Knobs("fab", n_target_classes=NUM_TARGETS)
        self.evaluation: Evaluation | None = None

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Path | str | None = None,
    ) -> Any:
        """Adversarial images [N, C, H, W] on the device of `x_orig`; those that no attack broke are unchanged.

        With `return_labels` also what the model says of them: int64 [N]. `state_path` is a directory that keeps what is
        done, so that the same call goes on from there. `evaluation` then says all else.
        """
        found = self._evaluated(x_orig, y_orig, bs, state_path)
        x_adv = as_numbers(x_orig).clone()
        x_adv[found.rows.to(x_adv.device)] = found.x_adv.to(x_adv.device)
        return (x_adv, self._labels(x_adv, bs)) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """What `run_standard_evaluation` gives, for each of the attacks by itself."""
        alone, found = copy(self), {}
        for name in self.attacks_to_run:
            alone.attacks_to_run = [name]
            found[name] = alone.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
            self.evaluation = alone.evaluation
        return found

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """The share of the images that are classified correctly as they are, 0 to 1."""
        settings = EvaluationSettings("none", batch=bs)
        return evaluate(self.model, x_orig, y_orig, settings, device=self._device(x_orig)).clean / 100

    def _evaluated(self, x: Tensor, y: Tensor, bs: int, state_path: Path | str | None) -> Evaluation:
        """What the attacks leave of the images `x`: told, and kept as `evaluation`."""
        names, device = self._names(self.attacks_to_run), self._device(x)
        targets, of_fab = self.apgd_targeted.n_target_classes, self.fab.n_target_classes
        if targets != of_fab:
            raise UserError(
                f"apgd_targeted.n_target_classes is {targets} and fab.n_target_classes {of_fab}: give both one"
            )
        threat = {"norm": NORMS[self.norm], "eps": self.epsilon}
        settings = EvaluationSettings(",".join(names), seed=self.seed, batch=bs, targets=targets, **threat)
        with progress("AutoAttack", len(x)) as advance:
            found = evaluate(self.model, x, y, settings, device=device, state=state_path, advance=advance)
        for start in range(1, self.apgd.n_restarts if "apgd-ce" in names else 1):
            left = list(found.flags.values())[-1].nonzero().flatten()
            if not len(left):
                break
            own = None if state_path is None else Path(state_path) / f"start-{start + 1}"
            rows = left.to(x.device)
            again = replace(settings, attack="apgd-ce", seed=self.seed + start)
            more = evaluate(self.model, x[rows], y[rows], again, device=device, state=own)
            found = _together(found, more, left)
        self.evaluation = found
        self._tell(found)
        return found

    def _names(self, attacks: Sequence[str]) -> list[str]:
        """The attacks as fastarat calls them, each once."""
        if not attacks:
            raise UserError("attacks_to_run is empty: name some, as adversary.attacks_to_run = ['apgd-ce']")
        for name in attacks:
            if name in TARGETED:
                notice(f"{name} runs in its targeted form, {TARGETED[name]}, which is the one that there is here")
        return list(dict.fromkeys(TARGETED.get(name, name) for name in attacks))

    def _device(self, x: Tensor) -> torch.device | str | None:
        return x.device if self.device is None and isinstance(self.model, Called) else self.device

    @torch.no_grad()
    def _labels(self, x: Tensor, bs: int) -> Tensor:
        device = device_of(self.model, torch.device(self._device(x) or x.device))
        return torch.cat([self.model(part.to(device)).argmax(1).to(x.device) for part in x.split(bs)])

    def _tell(self, found: Evaluation) -> None:
        after = ", ".join(f"{name} {percent:.2f} %" for name, percent in found.after.items())
        summary = [f"clean {found.clean:.2f} %; robust after {after}"] if self.verbose else []
        lines = [*summary, *(f"warning: {warning}" for warning in found.warnings)]
        for line in lines:
            notice(line)
        if self.log_path is not None:
            try:
                with self.log_path.open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
            except OSError as error:  # the result is worth more than its log
                notice(f"nothing was added to {self.log_path}: {error.strerror}")


class Called(nn.Module):
    """A function, in eval mode, as a module; a method of a module brings the module along."""

    def __init__(self, call: Callable[[Tensor], Tensor]):
        super().__init__()
        self.training = False
        owner = getattr(call, "__self__", None)
        if isinstance(owner, nn.Module):
            self.owner = owner
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def as_module(model: Callable[[Tensor], Tensor]) -> nn.Module:
    """A module as it is, a function of images in eval mode. Raises `UserError` for anything else."""
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module, or a function of images")
    return Called(model)


def benchmark(
    model: Callable[[Tensor], Tensor],
    n_examples: int = 10_000,
    dataset: Any = "cifar10",
    threat_model: Any = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: Path | str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 250,
    eps: float | None = None,
    log_path: Path | str | None = None,
    aa_state_path: Path | str | None = None,
    *,
    x_test: Tensor | None = None,
    y_test: Tensor | None = None,
) -> tuple[float, float]:
    """Clean and robust accuracy in [0, 1] on `n_examples` test images of `dataset` (a name or a path, as `fastarat eval
    --data` takes them), or the first ones of `x_test`, `y_test`.

    Of CIFAR's archives they are the first ones, as in RobustBench; of other sets, which may be sorted by class, a
    random choice, always the same. A module is moved to `device`. `to_disk` writes
    model_info/DATASET/THREAT_MODEL/MODEL_NAME.json. Raises `UserError` for other threat models.
    """
    dataset, threat_model = (name.value if isinstance(name, Enum) else name for name in (dataset, threat_model))
    if threat_model not in NORMS:
        raise UserError(f"threat_model {threat_model!r}: there is {' and '.join(NORMS)}")
    n_examples = plain(n_examples)
    if not fits(n_examples, int) or n_examples < 1:
        raise UserError(f"n_examples is {n_examples!r}: give a whole number of 1 or more")
    if eps is None:
        raise UserError(f"eps is not given, and {threat_model} needs it: 8/255 is usual for Linf, 0.5 for L2")
    if (x_test is None) != (y_test is None):
        raise UserError("give x_test and y_test, or neither")
    if to_disk and not model_name:
        raise UserError("to_disk needs a model_name: give one, which the file is called by")
    if data_dir is not None:
        raise UserError(f"data_dir {data_dir}: give the path of the data set as dataset, or set FASTARAT_DATA")
    if x_test is None or y_test is None:
        x_test, y_test = _test_images(str(dataset), n_examples)
    module = as_module(model)
    try:
        module = module if device is None else module.to(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"device {device!r}: give cpu, or a cuda that is here ({first_line(error)})") from error
    attack = AutoAttack(module, norm=threat_model, eps=eps, device=device, log_path=log_path)
    found = attack._evaluated(x_test[:n_examples], y_test[:n_examples], batch_size, aa_state_path)
    if to_disk:
        _write(Path("model_info") / as_file_name(str(dataset)) / threat_model, str(model_name), str(dataset), found)
    return found.clean / 100, found.robust / 100


def _test_images(dataset: str, number: int) -> tuple[Tensor, Tensor]:
    """So many test images of a data set as `evaluate` takes them, and their labels."""
    found = find(dataset)
    opened = found.open()
    images = opened.decoded_test
    if dataset not in ARCHIVES and found.format is not FORMATS["cifar"] and number < len(images):
        images = subset(images, number, 0)
        notice(f"{number} test images of {opened.name} are chosen at random, always the same: the first are no sample")
    return as_images(images, opened.max_value)


def _write(folder: Path, name: str, dataset: str, found: Evaluation) -> None:
    values = {"name": name, "dataset": dataset, "attack": "AutoAttack", "eps": found.eps, "number": found.num_images}
    values |= {"clean_acc": f"{found.clean:.2f}", "autoattack_acc": f"{found.robust:.2f}"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{as_file_name(name)}.json", json.dumps(values, indent=2) + "\n")
    except OSError as error:
        notice(f"cannot make {folder}: {error.strerror}; the result was {json.dumps(values)}")


def _together(found: Evaluation, more: Evaluation, rows: Tensor) -> Evaluation:
    """`found`, and what another start of one of its attacks broke among its images `rows` (int64), which were left."""
    (name,), broken, stages = more.traces, rows[more.rows], list(found.flags)
    begun = stages[stages.index(name) :]
    flags = {stage: of.index_fill(0, broken, False) if stage in begun else of for stage, of in found.flags.items()}
    places, order = torch.cat([found.rows, broken]).sort()
    both = with_further_start(found.traces[name], more.traces[name], rows, broken)
    return replace(
        found,
        flags=flags,
        rows=places,
        x_adv=torch.cat([found.x_adv, more.x_adv])[order],
        seconds={**found.seconds, name: found.seconds[name] + more.seconds[name]},
        traces={**found.traces, name: both},
    )
