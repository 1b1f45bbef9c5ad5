"""`fastarat recipes [NAME]`: list the recipes, or show one."""

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from fastarat.commands.parsing import Printed, parse
from fastarat.common.console import print_json, print_table
from fastarat.config import recipes, to_json


@dataclass(frozen=True)
class RecipesArguments(Printed):
    """List the recipes, or show one with all its settings.

    For example: fastarat recipes cifar10-resnet18-arat
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]")] = ""
    """a recipe to show"""


def run(args: list[str]) -> int:
    """Print the list, or one recipe's head and settings, all as numbers."""
    arguments = parse(RecipesArguments, args, "fastarat recipes")
    if arguments.name:
        config = recipes.recipe(arguments.name).resolved()
        if arguments.json:
            print_json(asdict(config))
        else:
            print(f"{recipes.head(arguments.name)}\n\n{to_json(config)}", end="")
        return 0
    if arguments.json:
        print_json([{"name": name, "about": _about(name)} for name in recipes.names()])
    else:
        print_table("", ["recipe", "about"], [[name, _about(name)] for name in recipes.names()])
    return 0


def _about(name: str) -> str:
    return recipes.head(name).partition("\n")[0].rstrip(".:")
