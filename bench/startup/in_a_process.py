"""One start of a training in a fresh process, timed part by part: what `bench.startup` runs.

    python -m bench.startup.in_a_process STARTED SETTINGS

STARTED: `time.monotonic()` when the command was given. SETTINGS: JSON, see `training_config`. The last line printed
is the result as JSON. Nothing is imported here before it is timed.
"""

import json
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastarat.config import Config


def training_config(settings: dict[str, Any]) -> "Config":
    """The recipe's configuration. `settings`: recipe, device, compile, kernels, and smoke for a tiny step."""
    from fastarat.config.recipes import recipe

    chosen = {name: settings[name] for name in ("device", "compile", "kernels")}
    config = replace(recipe(settings["recipe"]), num_validation_images=0, **chosen)
    if settings["smoke"]:
        config = replace(config, batch=8, attack=replace(config.attack, steps=1))
    return config


def main(started: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds to the first finished step and of each part on the way, of the second step, and what was chosen."""
    parts, last = {}, started

    def ended(part: str) -> None:
        nonlocal last
        now = time.monotonic()
        parts[part], last = round(now - last, 3), now

    import torch  # noqa: F401

    ended("torch")
    import fastarat.training.train  # noqa: F401  all that `fastarat train` needs once its flags are read

    ended("fastarat")
    from bench.common.inputs import random_images

    config = training_config(settings)
    dataset = random_images(config.data, 4 * config.batch if settings["smoke"] else None)
    ended("data")
    # As `fastarat train` builds them.
    from fastarat.common.choice_log import ChoiceLog
    from fastarat.common.distributed import join_world
    from fastarat.data.loading.choose import Opened
    from fastarat.training.build import start_training
    from fastarat.training.choices import choose

    choices = choose(config, ChoiceLog(quiet=True))
    opened = Opened(dataset, "resident", "the fastest")
    training, step = start_training(config, opened, choices, join_world(choices.device))
    ended("net")
    batches = training.loader.batches(1)
    for part in ("first_step", "second_step"):
        training.advance(step, next(batches))
        int(training.first_bad_step)  # waits for the device
        ended(part)
    second = parts.pop("second_step")
    chosen = {name: getattr(choices, name) for name in ("dtype", "compile", "kernels")}
    return {"seconds": round(sum(parts.values()), 3), "parts_s": parts, "second_step_s": second, **chosen}


if __name__ == "__main__":
    try:
        print(json.dumps(main(float(sys.argv[1]), json.loads(sys.argv[2]))))
    except Exception as error:
        from fastarat.common.errors import UserError

        if not isinstance(error, UserError):
            raise
        print(error, file=sys.stderr)
        sys.exit(2)
