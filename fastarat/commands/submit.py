"""`fastarat submit [RECIPE] …`: a training as a job of a cluster, which goes on where it was stopped."""

import importlib.util
import math
from dataclasses import dataclass, fields
from pathlib import Path
from shutil import which
from typing import Annotated, Any, Literal

import tyro

from fastarat.commands.parsing import Printed, parse, value_of
from fastarat.commands.train import TrainArguments, parse_arguments
from fastarat.common.console import notice, print_json
from fastarat.common.errors import UserError, WorkError, first_line
from fastarat.config import Config
from fastarat.training.launching.job import NOTICE_S, TrainingJob

LEAST_MIN = NOTICE_S // 60 + 2
"""minutes that a job has to have: Slurm may tell it of its end a minute early, and one is to train"""
_ITSELF = "submit itself"
SET_BY = {
    "nodes": "--nodes",
    "ntasks": "--nodes and --gpus",
    "ntasks-per-node": "--gpus",
    "gpus-per-node": "--gpus",
    "cpus-per-task": "--cpus",
    "partition": "--partition",
    "time": "--hours",
    **dict.fromkeys(("signal", "output", "error", "open-mode"), _ITSELF),
}
"""which flag says what an option of sbatch is"""


@dataclass(frozen=True)
class SubmitArguments(Printed):
    """Hand a training to Slurm, by submitit: all flags of train, and these.

    Before its time is over, or when it is preempted, the job saves a checkpoint, queues again, and goes on from there.
    A task is started for each process that --nodes and --gpus ask for.
    For example: fastarat submit cifar10-resnet18-arat --nodes 2 --gpus 8 --hours 4 --partition gpu
    """

    cluster: Literal["slurm", "local"] = "slurm"
    """local: processes of this machine, as a job would run"""
    partition: str | None = None
    """Slurm's; default the cluster's own"""
    hours: float = 24.0
    """after which the job queues again; the notice before the end needs some minutes of them"""
    cpus: int = 8
    """cores for each process"""
    requeues: int = 100
    """how often a job whose time is over queues again"""
    options: tyro.conf.UseAppendAction[tuple[Annotated[str, tyro.conf.arg(metavar="NAME=VALUE")], ...]] = ()
    """an option of sbatch, such as account=vision; again for each further one"""


def run(args: list[str]) -> int:
    """Submit, and say what was and where its log lies."""
    own, of_train = _split(args)
    arguments = parse(SubmitArguments, own, "fastarat submit", first="[RECIPE]")
    for name in ("hours", "cpus", "requeues"):
        if not 0 < getattr(arguments, name) < math.inf:
            raise UserError(f"--{name} is {getattr(arguments, name):g}: give a finite number above 0")
    if _minutes(arguments) < LEAST_MIN:
        raise UserError(
            f"--hours is {arguments.hours:g}: give {math.ceil(100 * LEAST_MIN / 60) / 100:g} or more, for the job is "
            f"told of its end {NOTICE_S} s before, or a minute earlier"
        )
    if bad := [option for option in arguments.options if "=" not in option]:
        raise UserError(f"--options {bad[0]}: give NAME=VALUE, such as account=vision")
    for option in arguments.options:
        name = option.partition("=")[0].strip("-").replace("_", "-")
        if name in SET_BY:
            raise UserError(f"--options {option}: {name} is set by {SET_BY[name]}: leave it out")
    if not importlib.util.find_spec("submitit"):
        raise UserError("fastarat submit needs submitit: pip install 'fastarat[slurm]'")
    wanted = _checked(of_train, by_slurm=arguments.cluster == "slurm")
    assert wanted.out is not None
    out = wanted.out.resolve()
    if value_of(of_train, "--out") is None:
        of_train = [*of_train, "--out", str(out)]
    executor = _executor(arguments, wanted.config, out)
    try:
        job = executor.submit(TrainingJob(tuple(of_train), going_on(wanted, of_train, out), out))
    except Exception as error:  # a class of submitit's own, or of a cluster's plugin
        raise WorkError(f"the job could not be submitted: {first_line(error)}") from error
    if arguments.json:
        print_json({"job": job.job_id, "run": str(out), "log": str(job.paths.stderr)})
    else:
        notice(f"job {job.job_id}: {out}; its log: {job.paths.stderr}")
    return 0


def going_on(wanted: TrainArguments, args: list[str], out: Path) -> tuple[str, ...]:
    """What train is given by a job that goes on: `args` where the run goes on from the first; else all but settings,
    which are the run's."""
    if wanted.resume:
        return tuple(args)
    found = ["--resume", str(out)]
    found += [] if wanted.report else ["--no-report"]
    found += ["--log", *wanted.log] if wanted.log is not None else []
    found += ["--max-restarts", str(wanted.max_restarts)] if wanted.max_restarts else []
    return (*found, *(("--port", str(wanted.port)) if wanted.port else ()))


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """The flags of `submit`, each with its value, and all others, which are train's."""
    own: list[str] = []
    names = {f"--{field.name.replace('_', '-')}" for field in fields(SubmitArguments)} - {"--json"}
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in ("--json", "-h", "--help") or (arg.partition("=")[0] in names and "=" in arg):
            own.append(arg)
        elif arg in names:
            own += [arg, *([value] if (value := next(rest, None)) is not None else [])]
        else:
            others.append(arg)
    return own, others


def _minutes(arguments: SubmitArguments) -> int:
    return round(60 * arguments.hours)


def _checked(args: list[str], by_slurm: bool) -> TrainArguments:
    """What they say to train. Raises `UserError` for what it would refuse; machines find each other by Slurm."""
    nodes = value_of(args, "--nodes")
    if nodes is not None and ":" in nodes:
        raise UserError(f"--nodes {nodes}: a job has a fixed number of machines: give one number")
    if value_of(args, "--rendezvous") is not None:
        raise UserError("--rendezvous is Slurm's to say: leave it out")
    wanted = parse_arguments(args)
    if wanted.max_restarts and by_slurm and wanted.config.num_processes > 1:
        raise UserError(
            f"--max-restarts {wanted.max_restarts}: Slurm starts the processes, each once: leave it out; after a loss "
            "submit again with --out RUN, which goes on"
        )
    return wanted


def _executor(arguments: SubmitArguments, config: Config, out: Path) -> Any:
    """submitit's, with what the job asks of the cluster."""
    import submitit

    is_local = arguments.cluster == "local"
    if is_local and config.nodes > 1:
        raise UserError(f"--cluster local: this is one machine, not {config.nodes}: leave --nodes out")
    missing = [program for program in ("sbatch", "srun") if not which(program)]
    if not is_local and missing:
        raise UserError(
            f"this machine has no Slurm ({missing[0]} is not here): submit where it is, or give --cluster local, which "
            "runs the job here"
        )
    folder, requeues = out.parent / "submitted" / out.name, {f"{arguments.cluster}_max_num_timeout": arguments.requeues}
    executor = submitit.AutoExecutor(folder, cluster=arguments.cluster, **requeues)
    executor.update_parameters(name="fastarat", timeout_min=_minutes(arguments))
    processes = config.num_processes // config.nodes
    # On this machine our own launcher starts them; Slurm starts a task for each.
    executor.update_parameters(tasks_per_node=1 if is_local else processes, gpus_per_node=config.gpus)
    if not is_local:
        executor.update_parameters(
            nodes=config.nodes,
            cpus_per_task=arguments.cpus,
            slurm_signal_delay_s=NOTICE_S,
            slurm_additional_parameters=dict(option.split("=", 1) for option in arguments.options),
            **({"slurm_partition": arguments.partition} if arguments.partition else {}),
        )
    return executor
