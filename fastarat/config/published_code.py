"""The other fidelity: what the published AR-AT code does otherwise than its description."""

from dataclasses import replace

from fastarat.common.errors import UserError
from fastarat.config.method import ARATConfig, ATConfig
from fastarat.config.tree import Config


def published_code(config: Config) -> Config:
    """The recipe with the departures of the published AR-AT code from its description.

    The attack's ball and the clean branch move with the start noise; the schedule drops an epoch late
    after a first epoch at a fifth of the rate; the balance comes from 1,024 augmented images; the
    evaluation inherits the moved ball; SWA counts the attack's forwards and forgets the clean branch. Raises
    `UserError` for a method that this code does not have.
    """
    if not isinstance(config.method, ARATConfig | ATConfig) or config.attack.steps == 1:
        raise UserError(f"published-code is a fidelity of the recipes of arat and at: leave it out for {config.recipe}")
    late = tuple(epoch + 1 for epoch in config.schedule.milestones)
    config = replace(
        config,
        fidelity="published-code",
        attack=replace(config.attack, start="published-code"),
        schedule=replace(config.schedule, milestones=late, warmup_epochs=1, warmup_factor=0.2),
        averaging=replace(config.averaging, reestimate="published-code"),
        evaluation=replace(config.evaluation, start="published-code"),
    )
    if isinstance(config.method, ARATConfig):
        return replace(config, method=replace(config.method, balance_images=1024, balance_augmented=True))
    return config
