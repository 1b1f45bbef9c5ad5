"""Which device, number format, kernels and kind of step a run uses, checked against what is there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from fastarat_kernels.implementations import can_be_left_out

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.errors import UserError
from fastarat.common.processes import num_seen
from fastarat.common.tf32 import rounded_to_tf32
from fastarat.common.typed import fits
from fastarat.config import Config
from fastarat.config.training import CompileMode
from fastarat.training.compiling.toolchain import why_no_code, why_no_gpu
from fastarat.training.step.precision import Dtype

Way = tuple[CompileMode, Literal["triton", "pytorch"]]
WAYS: tuple[Way, ...] = tuple(product(("graph", "compile", "eager"), ("triton", "pytorch")))
"""how the step runs and who computes, each better than those after it"""
SO_FAR = "as the run has it so far"
_PLAIN = {"compile": "eager", "kernels": "pytorch", "dtype": "fp16"}
"""what works everywhere, of formats on every GPU"""
_NO_BF16 = "the GPU has no bf16"


@dataclass(frozen=True)
class Choices:
    """What a run computes with; as it stands the plain way, which works everywhere."""

    device: str = "cpu"
    """cpu or cuda"""
    dtype: Dtype = "fp32"
    kernels: Literal["pytorch", "triton"] = "pytorch"
    compile: CompileMode = "eager"
    unroll: bool | None = None
    """compiled: the whole step as one graph, or a graph a stage; None: by its size"""
    threads: int | None = None
    """of PyTorch on a CPU; None: as many as it has"""
    without: tuple[str, ...] = ()
    """what PyTorch computes instead of Triton, by names that `can_be_left_out`: it lost or failed when it was tuned"""
    stem_channels: int | None = None
    """with how many channels the first convolution computes, those that images lack being zero; None: as it is"""

    @property
    def computed_by(self) -> str:
        """Whose kernels they are: `triton without augment`."""
        return " without ".join(filter(None, (self.kernels, " and ".join(self.without))))

    @property
    def level(self) -> int:
        """The place among `WAYS` of how its steps run: larger for a plainer way."""
        return WAYS.index((self.compile, self.kernels))


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Compute by this number of threads on a CPU; None: by as many as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose(config: Config, log: ChoiceLog, device: str | None = None) -> Choices:
    """What this configuration computes with on this machine; `log` takes the reason of each automatic choice.

    `device`: where it is chosen already. Raises `UserError` where the configuration asks for what is not there.
    """
    device = device or choose_device(config, log)
    dtype = choose_dtype(config, device, log)
    mode = choose_compile(config, device, log)
    return Choices(device, dtype, choose_kernels(config, device, dtype, mode, log), mode)


def as_begun(config: Config, session: Mapping[str, Any], device: str, log: ChoiceLog) -> tuple[Config, dict[str, Any]]:
    """`config` with what `auto` chose in the last `session` of a run's record, and those of its `Choices` that no
    setting names: a run that goes on computes as it did. What this machine cannot run gives way to what works
    everywhere.

    On another kind of device it is chosen anew. Threads are those of one process.
    """
    if session.get("device") != device:
        return config, {}
    left_open = [name for name in ("dtype", "kernels", "compile") if getattr(config, name) == "auto"]
    taken = {name: session[name] for name in left_open}
    missing = _why_not(taken, {"dtype": config.dtype, **taken}["dtype"], device)
    taken |= {name: _PLAIN[name] for name in missing}
    names = session.get("without", ()) if taken.get("kernels") == "triton" else ()
    without = tuple(filter(can_be_left_out, names))
    said = taken | {"kernels": Choices(kernels=taken.get("kernels", "pytorch"), without=without).computed_by}
    for name in left_open:
        log.choose(name, said[name], missing.get(name, SO_FAR))
    numbers = {name: _number(session.get(name)) for name in ("stem_channels", "threads_chosen")}
    threads = numbers["threads_chosen"] if config.num_processes == 1 else None
    unroll = session.get("unroll")
    unnamed = {"stem_channels": numbers["stem_channels"], "threads": threads}
    for name, number in unnamed.items():
        if number:
            log.choose(name.replace("_", " "), str(number), SO_FAR)
    unnamed |= {"without": without, "unroll": unroll if isinstance(unroll, bool) else None}
    return replace(config, **taken), unnamed


def _why_not(taken: Mapping[str, Any], dtype: str, device: str) -> dict[str, str]:
    """Why what was chosen once cannot run here, by name."""
    found = {}
    if taken.get("compile", "eager") != "eager":
        found["compile"] = why_no_code(device)
    if taken.get("kernels") == "triton":
        found["kernels"] = _why_no_triton(device, dtype)
    if device == "cuda" and taken.get("dtype") == "bf16" and not _gpu_computes_bf16():
        found["dtype"] = _NO_BF16
    return {name: why for name, why in found.items() if why}


def _number(value: Any) -> int | None:
    return value if fits(value, int) and value > 0 else None


def note_tf32(choices: Choices, log: ChoiceLog) -> None:
    """Note it where fp32 is not computed as such."""
    if choices.dtype == "fp32" and "convolutions" in rounded_to_tf32(torch.device(choices.device)):
        log.choose("fp32 convolutions", "TF32", "cuDNN's default: factors are rounded to 10 bits, sums are fp32")


def choose_device(config: Config, log: ChoiceLog) -> str:
    """`cpu` or `cuda`. Raises `UserError` if more is asked for than there is, or if torch cannot use what is there."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_seen(config.gpus) > num_gpus:
        raise UserError(f"--gpus {config.gpus}: this machine has {_gpus(num_gpus)}: {_fix(num_gpus)}")
    if config.device == "cuda" and num_gpus == 0:
        raise UserError(f"--device cuda: this machine has {_gpus(0)}: {_fix(0)}")
    if config.procs and config.device != "cuda":
        return "cpu"
    if config.device != "auto":
        return config.device
    if num_gpus:
        return log.choose("device", "cuda", torch.cuda.get_device_name())
    if reason := why_no_gpu():
        raise UserError(f"{reason}; --device cpu trains without")
    return log.choose("device", "cpu", "torch sees no GPU")


def choose_dtype(config: Config, device: str, log: ChoiceLog) -> Dtype:
    """The number format; `auto` is bf16 where the device computes it, else fp16 on a GPU and fp32 on a CPU."""
    if config.dtype != "auto":
        return config.dtype
    if device == "cpu":
        if cpu_computes_bf16():
            log.choose("dtype", "bf16", "the CPU computes it; statistics and losses in fp32")
            return "bf16"
        log.choose("dtype", "fp32", "the CPU has no instructions for bf16")
        return "fp32"
    if _gpu_computes_bf16():
        log.choose("dtype", "bf16", "the GPU has it")
        return "bf16"
    log.choose("dtype", "fp16", _NO_BF16)
    return "fp16"


def _gpu_computes_bf16() -> bool:
    """Whether this GPU does, without torch's emulation."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_computes_bf16() -> bool:
    """Whether this CPU has instructions for products in bf16: AVX512-BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def choose_compile(config: Config, device: str, log: ChoiceLog) -> CompileMode:
    """How the step runs; `auto` is graph on a GPU; on a CPU eager, until the steps are timed (`is_timed`).

    Raises `UserError` for what cannot run here.
    """
    if config.compile == "graph" and device == "cpu":
        raise UserError("--compile graph captures a CUDA graph, and this run is on the CPU: give compile or eager")
    if config.compile == "eager":
        return "eager"
    missing = why_no_code(device)
    if config.compile != "auto":
        if missing:
            raise UserError(f"--compile {config.compile}: {missing}; --compile eager works without")
        return config.compile
    if missing:
        log.choose("compile", "eager", missing)
        return "eager"
    if device == "cpu":
        return "eager"
    log.choose("compile", "graph", "one launch a step")
    return "graph"


def is_timed(config: Config, device: str) -> bool:
    """Whether the time left decides how the step runs: `auto` on a CPU that can compile."""
    return config.compile == "auto" and device == "cpu" and not why_no_code(device)


def choose_kernels(
    config: Config, device: str, dtype: Dtype, mode: CompileMode, log: ChoiceLog
) -> Literal["pytorch", "triton"]:
    """The kernels of a step that runs in `mode`; `auto` is triton where they run and a CUDA graph starts them.

    Raises `UserError` for triton where they do not run.
    """
    if config.kernels == "pytorch":
        return "pytorch"
    missing = _why_no_triton(device, dtype)
    if config.kernels == "triton":
        if missing:
            raise UserError(f"--kernels triton: {missing}; give --kernels pytorch, or auto")
        return "triton"
    if missing or mode != "graph":
        # Some 900 launches a step, each of tens of microseconds of Python: the device would wait for the host.
        why = missing or "the host starts Triton's one by one, which is slower but in a CUDA graph"
        log.choose("kernels", "pytorch", why)
        return "pytorch"
    log.choose("kernels", "triton", "fused batch-norm, attack update, augmentation and pooling")
    return "triton"


def _why_no_triton(device: str, dtype: str) -> str:
    """Why the Triton kernels cannot run here; empty if they can."""
    if device == "cpu":
        return "Triton's kernels need a GPU"
    if dtype == "fp64":
        return "Triton's kernels take fp32, bf16 and fp16"
    return why_no_code(device)


def _gpus(count: int) -> str:
    return {0: "no GPU that torch can use", 1: "1 GPU"}.get(count, f"{count} GPUs")


def _fix(count: int) -> str:
    if count:
        return f"give --gpus {count} or fewer"
    build = "" if torch.version.cuda else f"torch {torch.__version__} is a CPU build, install a CUDA build"
    fix = why_no_gpu() or build or "check the driver with nvidia-smi"
    return f"{fix}, or train on the CPU (--device cpu, no --gpus)"
