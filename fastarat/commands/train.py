"""`fastarat train [RECIPE] [overrides]`: train a robust model."""

import os
import signal
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fastarat.commands.parsing import (
    Printed,
    in_norm,
    named_recipe,
    parse,
    recipe_of,
    require_positive,
    value_of,
    without,
)
from fastarat.commands.several import refuse_own_flags
from fastarat.common.console import command, notice, print_json
from fastarat.common.errors import Interrupted, UserError, first_line
from fastarat.common.files import as_file_name
from fastarat.common.processes import (
    is_first,
    join_ranks,
    launched,
    may_start_again,
    num_here,
    num_machines,
    num_started,
)
from fastarat.common.signals import saving_answered
from fastarat.config import Config, load_config, recipes

if TYPE_CHECKING:
    from fastarat.runs.run import Run


@dataclass(frozen=True)
class TrainArguments(Printed):
    """Train a robust model by a recipe; every setting can be overridden.

    For example: fastarat train cifar10-resnet18-arat --gpus 8 --epochs 50 --attack.steps 7
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None
    """the run's directory; default runs/RECIPE-DATE"""
    resume: bool = False
    """go on with the run in --out (without it: the recipe's newest run) from its newest checkpoint"""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """take all settings from this run instead of a recipe"""
    port: int = 0
    """port on which the processes of one machine find each other; 0: any free one"""
    rendezvous: str = ""
    """HOST:PORT of one of several machines (--nodes), where they find each other; the same command runs on each"""
    max_restarts: int = 0
    """how often the processes are started again, from the newest checkpoint, after one of them or a machine was lost"""
    report: bool = True
    """write report.html into the run's directory at the end; see 'fastarat report --help'"""
    log: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME …]")] = None
    """where each epoch's numbers go besides metrics.jsonl: tensorboard, csv, wandb, mlflow, notebook, or several; auto:
    TensorBoard's events where it is installed, and in a notebook its figure; default auto, and with --resume where they
    have gone so far"""
    profile: int | None = None
    """record this many steps after the first few, and show where their time goes: profile/ in the run's directory"""


def run(args: list[str]) -> int:
    """Parse, check, and train: here, or in the processes that are started for it."""
    if value_of(args, "--rendezvous") is None:
        join_ranks()  # with it our own launcher runs on each machine, whoever started that
    arguments = parse_arguments(args)
    if launched():
        refuse_own_flags(
            {
                "--max-restarts": arguments.max_restarts,
                "--nodes LEAST:MOST": ":" in (value_of(args, "--nodes") or ""),
                "--rendezvous": arguments.rendezvous,
                "--port": arguments.port,
            }
        )
        if may_start_again() and value_of(args, "--out") is None and not arguments.resume:
            raise UserError("torchrun --max-restarts: give --out RUN, so that what it starts again goes on there")
        arguments = _as_started(arguments, args)
    elif (arguments.config.nodes > 1) != bool(arguments.rendezvous):
        raise UserError("--nodes N and --rendezvous HOST:PORT go together: give both on every machine, or neither")
    elif arguments.config.num_processes > 1 or arguments.max_restarts:
        return _launch(arguments, args)
    from fastarat.training.train import train

    assert arguments.out is not None
    if is_first() and not arguments.resume:
        settings = f" as in {arguments.from_}" if arguments.from_ else ""
        notice(f"{arguments.config.recipe}{settings} -> {arguments.out}")
    try:
        options: dict[str, Any] = {"resume": arguments.resume, "profile": arguments.profile, "loggers": arguments.log}
        # A checkpoint is asked for before there is one to write, or when all is done: the training itself answers.
        with saving_answered(signal.SIG_IGN):
            finished = train(arguments.config, arguments.out, **options)
            if is_first():
                _report(finished, arguments.json)
                if arguments.report:
                    write_page(finished)
    except Interrupted as stopped:
        goes_on = f"{command('train', '--resume', arguments.out)} goes on from there"
        raise Interrupted(f"{stopped}; {goes_on}", stopped.number) from stopped
    return 0


def parse_arguments(args: list[str]) -> TrainArguments:
    """The run directory is settled here, and the configuration checked.

    Settings come from the recipe, from `--from RUN`, or (`--resume`) from the run itself; flags override. Raises
    `UserError` for what does not fit.
    """
    args = _most_nodes(_resume_takes_a_run(args))
    base, rest = _base_config(args)
    method = value_of(rest, "--method.name")
    if method not in (None, base.method.name):
        raise UserError(
            f"--method.name {method}: the method is the recipe's, here {base.method.name}: give another recipe; "
            "'fastarat recipes' lists all with their methods"
        )
    arguments = parse(TrainArguments, rest, "fastarat train", TrainArguments(base), "[RECIPE]")
    arguments = replace(arguments, config=arguments.config.checked())
    require_positive(arguments, "profile")
    if arguments.max_restarts < 0:
        raise UserError(f"--max-restarts {arguments.max_restarts}: give 0 or more")
    if arguments.out == Path():
        raise UserError("--out is the current directory: give the run one of its own")
    if arguments.resume:
        return _resumed(arguments)
    out = arguments.out or Path("runs") / f"{as_file_name(arguments.config.recipe)}-{datetime.now():%Y%m%d-%H%M%S}"
    return replace(arguments, out=out)


def _resume_takes_a_run(args: list[str]) -> list[str]:
    """`--resume RUN` and `--resume=RUN` are short for `--resume --out RUN`."""
    args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--resume=") else [arg])]
    if "--resume" in args:
        i = args.index("--resume") + 1
        if i < len(args) and not args[i].startswith("-"):
            return [*args[:i], "--out", *args[i:]]
    return args


def _most_nodes(args: list[str]) -> list[str]:
    """`args` with `--nodes MOST` for `--nodes LEAST:MOST`."""
    nodes = value_of(args, "--nodes")
    if nodes is None or ":" not in nodes:
        return args
    least, _, most = nodes.partition(":")
    if not (least.isdecimal() and most.isdecimal() and 0 < int(least) <= int(most)):
        raise UserError(f"--nodes {nodes}: give a number of machines, or LEAST:MOST such as 2:4")
    return [*without(args, "--nodes"), "--nodes", most]


def _base_config(args: list[str]) -> tuple[Config, list[str]]:
    """What the flags override, and the flags without the recipe's name."""
    named, rest = named_recipe(args)
    source = value_of(rest, "--from")
    if source is None and "--resume" in rest:
        found = _run_to_resume(named, rest)
        return _config_of(found, named, rest), [*rest, "--out", str(found)]
    if source is not None:
        return _config_of(Path(source), named, rest), rest
    return recipe_of(args)


def _config_of(run: Path, named: str | None, rest: list[str]) -> Config:
    from fastarat.runs.run import Run

    config = load_config(Run(run).config_file).following()
    if named not in (None, config.recipe):
        raise UserError(f"{run} is a run of {config.recipe}, not of {named}: leave the recipe out")
    if value_of(rest, "--fidelity") not in (None, config.fidelity):
        raise UserError(f"--fidelity changes many settings of a recipe: start from the recipe, not from {run}")
    return in_norm(config, rest)


def _run_to_resume(named: str | None, rest: list[str]) -> Path:
    out = value_of(rest, "--out")
    if out is not None:
        if not (Path(out) / "config.json").exists():
            raise UserError(f"nothing to resume: {out} is no run directory")
        return Path(out)
    pattern = f"{as_file_name(recipes.DEFAULT if named is None else named)}-[0-9]*"
    found = sorted(path.parent for path in Path("runs").glob(f"{pattern}/config.json"))
    if not found:
        raise UserError(f"nothing to resume: there is no runs/{pattern}; name a run with --out")
    return found[-1]


def _resumed(arguments: TrainArguments) -> TrainArguments:
    assert arguments.out is not None
    from fastarat.runs.run import fixed_on_resume

    was, now = fixed_on_resume(load_config(arguments.out / "config.json")), fixed_on_resume(arguments.config)
    if changed := [name for name, value in was.items() if now[name] != value]:
        raise UserError(
            f"{arguments.out} cannot go on with another {' and '.join(changed)}: start a new run with --from "
            f"{quote(str(arguments.out))}"
        )
    return arguments


def _as_started(arguments: TrainArguments, args: list[str]) -> TrainArguments:
    """With the launcher's numbers of machines and processes, where no flag names them: those that a run was begun with
    need not be these. Raises `UserError` for others."""
    from fastarat.common.choice_log import ChoiceLog
    from fastarat.training.choices import choose_device

    config, size, here = arguments.config, num_started(), num_here(num_started())
    if nodes := num_machines():
        return replace(arguments, config=replace(config, nodes=nodes).checked())
    if all(value_of(args, flag) is None for flag in ("--nodes", "--gpus", "--procs")):
        if size % here:
            raise UserError(f"{size} processes, {here} of them on this machine: start as many on each")
        device = choose_device(replace(config, gpus=min(config.gpus, 1)), ChoiceLog(quiet=True))
        count = here if size > 1 else 0
        gpus, procs = (count, 0) if device == "cuda" else (0, count)
        return replace(arguments, config=replace(config, nodes=size // here, gpus=gpus, procs=procs).checked())
    if size != config.num_processes:
        raise UserError(
            f"this is one of {size} processes that a launcher started, and the settings say {config.num_processes}: "
            "leave --nodes, --gpus and --procs out, and they are as it says"
        )
    return arguments


def _launch(arguments: TrainArguments, args: list[str]) -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it once
    from fastarat.common.choice_log import ChoiceLog
    from fastarat.training.agreement import settings_of
    from fastarat.training.choices import choose_device
    from fastarat.training.launching.launch import Machines, launch

    on_gpus = choose_device(arguments.config, ChoiceLog(quiet=True)) == "cuda"
    args = _resume_takes_a_run(args)
    if value_of(args, "--out") is None:
        # The directory is named here, once: each process would find a name of its own.
        args = [*args, "--out", str(arguments.out)]
    config, least = arguments.config, (value_of(args, "--nodes") or "").partition(":")[0]
    machines = None
    if config.nodes > 1:
        machines = Machines(int(least or config.nodes), config.nodes, arguments.rendezvous)
        _check_division(config, machines.least)
    return launch(
        config.num_processes // config.nodes,
        ["train", *without(args, "--nodes")],  # there are as many as come
        arguments.port,
        machines,
        goes_on="--resume goes on from the last checkpoint",
        max_restarts=arguments.max_restarts,
        on_gpus=on_gpus,
        settings=settings_of(replace(config, nodes=1, gpus=0, procs=0)),  # of these each may have its own
    )


def _check_division(config: Config, least: int) -> None:
    """Raise `UserError` if the batch does not divide among so many machines; say with how many more it does not."""
    replace(config, nodes=least).checked()
    if odd := [str(n) for n in range(least, config.nodes) if config.batch % replace(config, nodes=n).num_processes]:
        notice(
            f"batch {config.batch} does not divide among {' or '.join(odd)} machines: with as many the run would end"
        )


def _report(run: "Run", as_json: bool) -> None:
    from fastarat.runs.metrics import attack_name, doubts

    result = run.result() or {}
    if as_json:
        print_json({"run": str(run.path), **result})
        return
    measured = "not evaluated"
    if result:
        measured = f"epoch {result['epoch']}, {result['images']} images: clean {result['clean']:.1f} %, "
        measured += f"{attack_name(result)} {result['robust']:.1f} %{doubts(result)}"
    images, data = ("all test images", ()) if run.has_test_images() else ("a set with test images", ("--data", "SET"))
    notice(f"{run.path}: {measured}; {command('eval', run.path, *data)} measures it on {images}")


def write_page(run: "Run") -> None:
    """Write the report of a finished run. The training is done: what fails here, an interruption too, is one line."""
    out = run.path / "report.html"
    try:
        from fastarat.reports.look import affordable_images
        from fastarat.reports.report import write_report

        device = str((run.last_session() or {}).get("device", "cpu"))
        write_report([run.path], out, num_images=affordable_images(run), device=device)
        notice(f"{out}: what there is to see of it")
    except (Exception, KeyboardInterrupt) as error:
        reason = first_line(error)
        notice(f"no report was written ({reason}); {command('report', run.path)} writes one")
