"""Lower a recipe's step for an H100 that is not there: `python -m tests.traced_gpu.lowered RECIPE`.

torch's CPU build, preloaded with `guard.cpp`, traces the step on fake CUDA tensors; inductor lowers it and writes its
code, and every kernel in it goes through Triton and ptxas for sm_90. Nothing runs. Prints one line of JSON: how many
`kernels` inductor wrote, how many `convolutions` run forward, and how often each of fastarat's operators (`ours`) runs.
"""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from fastarat_kernels.implementations import TRITON
from torch import Tensor, nn
from torch._inductor.codecache import PyCodeCache
from torch._subclasses.fake_tensor import FakeTensorMode

from fastarat.common.distributed import World
from fastarat.config import Config
from fastarat.config.method import ARATConfig
from fastarat.config.recipes import recipe
from fastarat.data.loading.loader import Batch
from fastarat.methods.registry import build_method
from fastarat.models.registry import build_model
from fastarat.training.compiling.compiled import NotCompiled, build_step
from fastarat.training.step.train_step import Controls, StepParts
from tests.helpers.step_parts import parts_of

DEVICE = torch.device("cuda", 0)
H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "total_memory": 80 << 30,
    "warp_size": 32,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "shared_memory_per_block": 49152,
    "shared_memory_per_block_optin": 232448,
    "shared_memory_per_multiprocessor": 233472,
    "L2_cache_size": 50 << 20,
    "gcnArchName": "",
    "uuid": "",
}
IMAGES = {"digits": (1, 8), "cifar10": (3, 32)}
"""channels and pixels of a side"""
BATCH = 8


def pretend() -> None:
    """Let torch and Triton believe that there is an H100."""
    cuda, properties = torch.cuda, SimpleNamespace(**H100)
    said: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "get_device_name": properties.name,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "current_stream": SimpleNamespace(cuda_stream=0, device=DEVICE, device_index=0, stream_id=0, device_type=1),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        **dict.fromkeys(("_lazy_init", "set_rng_state", "synchronize")),
    }
    from torch._dynamo.device_interface import CudaInterface  # which has taken over functions of torch.cuda

    for owner, name in product((cuda, CudaInterface, CudaInterface.Worker), said):
        if owner is cuda or hasattr(owner, name):
            setattr(owner, name, staticmethod(lambda *_, value=said[name], **__: value))
    torch.version.cuda = "13.0"
    from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
    from torch._inductor.runtime import triton_helpers

    triton_helpers.set_driver_to_gpu = lambda: None  # NVIDIA's, for the one below
    for module, name in (
        (fuse_attention, "_sfdp_init"),
        (pad_mm, "_pad_mm_init"),
        (misc_patterns, "_misc_patterns_init"),
    ):
        setattr(module, name, lambda *_, **__: None)  # they would compute on the device
    import triton
    from triton.backends.compiler import GPUTarget

    utils = SimpleNamespace(get_device_properties=lambda _=0: {"max_shared_mem": 232448, "multiprocessor_count": 132})
    driver = {
        "get_current_target": GPUTarget("cuda", 90, 32),
        "get_current_device": 0,
        "get_device_capability": (9, 0),
        "get_current_stream": 0,
        "get_active_torch_device": DEVICE,
        "get_device_interface": cuda,
    }
    answers: dict[str, Any] = {name: lambda *_, value=value: value for name, value in driver.items()}
    triton.runtime.driver.set_active(SimpleNamespace(**answers, utils=utils))


def traced_step(config: Config, fake: FakeTensorMode) -> tuple[StepParts, Batch, Controls]:
    """What a step works with, in bf16 with Triton's kernels, all tensors on the GPU and fake."""

    def on_gpu(tensor: Tensor) -> Tensor:
        layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        with fake:
            return torch.empty_like(tensor, device=DEVICE, memory_format=layout)

    channels, side = IMAGES[config.data]
    batch_norm = config.method.batch_norm if isinstance(config.method, ARATConfig) else "shared"
    net = build_model(config.model.name, 10, channels, batch_norm)
    method = build_method(config.method, net, (channels, side, side))
    for module in (*net.modules(), *method.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(on_gpu(parameter), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, on_gpu(buffer))
    net.train()
    method.train()
    with fake:
        parts = parts_of(net, method, config.attack, "bf16", 0, DEVICE, TRITON, World(DEVICE), config.optimizer)
        x = torch.empty(BATCH, channels, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)
        y, rows = (torch.zeros(BATCH, dtype=torch.int64, device=DEVICE) for _ in range(2))
        step, *scalars = (torch.zeros((), dtype=dtype, device=DEVICE) for dtype in (torch.int64, *[torch.float32] * 3))
        return parts, Batch(x, y, rows), Controls(step, *scalars)


class _Written(Exception):
    """The code of the graph is there, and cannot run."""


def code_of(name: str) -> str:
    """What inductor writes for a recipe's step with two attack steps, as one graph."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor
    from torch._inductor.graph import GraphLowering

    config = recipe(name)
    config = replace(config, attack=replace(config.attack, steps=min(config.attack.steps, 2)))
    parts, batch, controls = traced_step(config, FakeTensorMode(allow_non_fake_inputs=True))
    codes = []

    def written(graph: GraphLowering) -> None:
        codes.append(graph.codegen()[0].value)
        raise _Written

    # Constants would be computed on the device.
    options = {"fx_graph_cache": False, "compile_threads": 1, "joint_graph_constant_folding": False}
    with (
        patch.object(GraphLowering, "compile_to_module", written),
        inductor.patch(options),
        functorch.patch(enable_autograd_cache=False),
    ):
        try:
            build_step(parts, controls, "compile", unroll=True)(batch)
        except NotCompiled:
            if not codes:
                raise
    (code,) = codes
    return code


def compiled_kernels(code: str) -> int:
    """How many kernels inductor wrote; each goes through Triton and ptxas, in every configuration that it may take."""
    sources = re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", code, re.DOTALL)
    for name, source in sources:
        getattr(PyCodeCache.load(source), name).precompile(warm_cache_only=True)
    return len(sources)


def main() -> None:
    """Lower the recipe's step, compile its kernels, print what there is."""
    pretend()
    code = code_of(sys.argv[1])
    calls = "\n".join(line for line in code.splitlines() if not line.lstrip().startswith("#"))
    ours = Counter(re.findall(r"torch\.ops\.fastarat\.(\w+)\.default\(", calls))
    convolutions = calls.count("extern_kernels.convolution(")
    print(json.dumps({"kernels": compiled_kernels(code), "convolutions": convolutions, "ours": ours}))


if __name__ == "__main__":
    main()
