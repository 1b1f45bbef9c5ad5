"""`fastarat tune [RECIPE] [overrides]`: find the fastest right form of a recipe's step on this machine."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from fastarat.commands.parsing import Printed, parse, recipe_of
from fastarat.common.console import command, notice, print_json, print_table
from fastarat.config import Config

if TYPE_CHECKING:
    from fastarat.training.tuning.trial import Tried


@dataclass(frozen=True)
class TuneArguments(Printed):
    """Find the fastest form of a recipe's step on this machine; trainings take it up from then on.

    Every form is held against the definition, and timed in turns with the plainest if it agrees; so is each of Triton's
    kernels, and those that differ, fail or lose are left out, as are shapes of maps on which the batch-norm's loses.
    What a flag names is not tried otherwise.

    For example: fastarat tune cifar10-resnet18-arat
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    again: bool = False
    """try anew what was tuned before"""


def run(args: list[str]) -> int:
    """Print a row per form, and what trainings take."""
    config, rest = recipe_of(args)
    arguments = parse(TuneArguments, rest, "fastarat tune", TuneArguments(config), "[RECIPE]")
    config = arguments.config.checked()
    from fastarat.common.choice_log import ChoiceLog
    from fastarat.training.tuning.candidates import described
    from fastarat.training.tuning.kept import tuned_choices
    from fastarat.training.tuning.tune import tune

    tuned = tune(config, again=arguments.again)
    chosen = tuned_choices(config, tuned.tried[0].form.device, ChoiceLog(quiet=True))
    if arguments.json:
        print_json({**asdict(tuned), "chosen": chosen and asdict(chosen)})
        return 0
    rows = [_row(one, is_plain=one == tuned.tried[0]) for one in tuned.tried]
    print_table(config.recipe, ["form", "images/s", "x the plainest", "first step, s", "verdict"], rows)
    if tuned.kernels:
        print_table("Triton's kernels", ["kernel", "verdict"], [[*one] for one in tuned.kernels.items()])
    if chosen:
        overrides = [word for word in rest if word not in ("--again", "--no-again", "--json", "--no-json")]
        notice(f"{command('train', config.recipe, *overrides)} takes {described(chosen)}; what is given by name wins")
    return 0


def _row(one: "Tried", *, is_plain: bool) -> list[str]:
    from fastarat.training.tuning.candidates import described

    if one.problem is not None:
        return [described(one.form), "-", "-", "-", f"refused: {one.problem}"]
    verdict = "right, the plainest" if is_plain else "right"
    return [described(one.form), f"{one.images_per_s:,.0f}", one.ratio_text, f"{one.ready_s:.1f}", verdict]
