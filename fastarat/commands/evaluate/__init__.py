"""`fastarat eval MODEL`: clean and robust accuracy."""

import sys
from contextlib import nullcontext, redirect_stdout

from fastarat.commands.evaluate.arguments import EvalArguments, check
from fastarat.commands.parsing import parse


def run(args: list[str]) -> int:
    """Evaluate and print tables, or JSON. Raises `WorkError` if the budget ended it."""
    arguments = parse(EvalArguments, args, "fastarat eval")
    check(arguments)
    from fastarat.commands.evaluate.report import report
    from fastarat.commands.evaluate.work import Work

    # A net of one's own may print; what a program reads is the result alone.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        work = Work(arguments)
        evaluation = work.evaluate()
    report(work, evaluation)
    sys.stdout.flush()  # what is not written yet must not be forgotten
    work.finish(evaluation)
    return 0
