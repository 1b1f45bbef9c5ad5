"""The calls that RobustBench's users write, run by fastarat: change the import, leave the rest.

from fastarat.robustbench import AutoAttack, benchmark

x_adv = AutoAttack(model, norm="Linf", eps=8 / 255, version="standard").run_standard_evaluation(x, y, bs=250)
clean, robust = benchmark(model, n_examples=1000, dataset="cifar10", threat_model="Linf", eps=8 / 255)
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastarat.attacks.autoattack_checks import STANDARD
from fastarat.attacks.autoattack_state import as_numbers
from fastarat.attacks.settings import Norm
from fastarat.console import notice, progress
from fastarat.data.sources import open_dataset
from fastarat.errors import UserError
from fastarat.evaluated import Evaluation
from fastarat.robustness import as_images, evaluate

NORMS: dict[str, Norm] = {"Linf": "linf", "L2": "l2"}
VERSIONS = {"standard": STANDARD, "custom": ()}


class AutoAttack:
    """AutoAttack on a model in eval mode, from images [N, C, H, W] in [0, 1] to logits [N, K].

    `attacks_to_run` is for version `custom` alone. `device` None: where the model is. `seed` None is 0, where
    the package takes the clock's. What is printed is added to the file `log_path`. Raises `UserError` for versions and
    norms that fastarat does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: float = 8 / 255,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        device: torch.device | str | None = None,
        log_path: Path | str | None = None,
    ):
        if norm not in NORMS:
            raise UserError(f"norm {norm!r}: there is {' and '.join(NORMS)}")
        if version not in VERSIONS:
            raise UserError(f"version {version!r}: there is {' and '.join(VERSIONS)}")
        if bool(attacks_to_run) != (version == "custom"):
            raise UserError(f"attacks_to_run with version {version!r}: give it with version 'custom', and only there")
        self.model, self.eps, self.seed = model, eps, seed or 0
        self.norm: Norm = NORMS[norm]
        self.verbose, self.device, self.log_path = verbose, device, log_path
        self.attacks_to_run = list(attacks_to_run or VERSIONS[version])
        self.evaluation: Evaluation | None = None

    def run_standard_evaluation(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, state_path: Path | str | None = None
    ) -> Tensor:
        """Adversarial images [N, C, H, W] on the device of `x_orig`; those that no attack broke are unchanged.

        `state_path` is a directory that keeps what is done, so that the same call goes on from there. `evaluation` then
        says all else.
        """
        with progress("AutoAttack", len(x_orig)) as advance:
            self.evaluation = found = evaluate(
                self.model,
                x_orig,
                y_orig,
                ",".join(self.attacks_to_run),
                norm=self.norm,
                eps=self.eps,
                seed=self.seed,
                batch=bs,
                device=self.device,
                state=state_path,
                advance=advance,
            )
        self._tell(found)
        x_adv = as_numbers(x_orig).clone()
        x_adv[found.rows.to(x_adv.device)] = found.x_adv.to(x_adv.device)
        return x_adv

    def _tell(self, found: Evaluation) -> None:
        after = ", ".join(f"{name} {percent:.2f} %" for name, percent in found.after.items())
        lines = [f"clean {found.clean:.2f} %; robust after {after}"] if self.verbose else []
        lines += [f"warning: {warning}" for warning in found.warnings]
        for line in lines:
            notice(line)
        if self.log_path is not None:
            with Path(self.log_path).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)


def benchmark(
    model: nn.Module,
    n_examples: int = 10_000,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    eps: float | None = None,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    x_test: Tensor | None = None,
    y_test: Tensor | None = None,
) -> tuple[float, float]:
    """Clean and robust accuracy in [0, 1] on the first `n_examples` test images of `dataset` (a name or a path, as
    `fastarat eval --data` takes them), or of `x_test`, `y_test`. Raises `UserError` for other threat models.
    """
    if threat_model not in NORMS:
        raise UserError(f"threat_model {threat_model!r}: there is {' and '.join(NORMS)}")
    if eps is None:
        raise UserError(f"eps is not given, and {threat_model} needs it: 8/255 is usual for Linf, 0.5 for L2")
    if (x_test is None) != (y_test is None):
        raise UserError("give x_test and y_test, or neither")
    if x_test is None or y_test is None:
        opened = open_dataset(dataset)
        x_test, y_test = as_images(opened.test, opened.max_value)
    attack = AutoAttack(model, norm=threat_model, eps=eps, device=device)
    attack.run_standard_evaluation(x_test[:n_examples], y_test[:n_examples], bs=batch_size)
    assert attack.evaluation is not None
    return attack.evaluation.clean / 100, attack.evaluation.robust / 100
