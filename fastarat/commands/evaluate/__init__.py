"""`fastarat eval MODEL`: clean and robust accuracy."""

import sys
from contextlib import nullcontext, redirect_stdout

from fastarat.commands.evaluate.arguments import EvalArguments, check
from fastarat.commands.parsing import parse
from fastarat.commands.several import first_here_first, started, world_of


def run(args: list[str]) -> int:
    """Evaluate and print tables, or JSON. Raises `WorkError` if the budget ended it."""
    arguments = parse(EvalArguments, args, "fastarat eval")
    check(arguments)
    if (code := started(arguments, ["eval", *args], arguments.nodes, arguments.rendezvous)) is not None:
        return code
    from fastarat.commands.evaluate.report import report
    from fastarat.commands.evaluate.work import Work

    with world_of(arguments) as world:
        # A net of one's own may print; what a program reads is the result alone.
        with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
            with first_here_first(world):
                work = Work(arguments, world)
            work.check_alike()
            evaluation = work.evaluate()
        if world.is_main:
            report(work, evaluation)
            sys.stdout.flush()  # what is not written yet must not be forgotten
            work.finish(evaluation)
    return 0
