"""An op is its twin on a CPU and, on a GPU, the function of the same name and arguments in the file beside it."""

import inspect
from importlib import import_module

import pytest
import torch
from fastarat_kernels.launch import recording
from fastarat_kernels.pgd_step.op import _start_point

OPS = {
    "augment": ["augment"],
    "dual_batch_norm": [f"batch_norm_{name}" for name in ("partials", "apply", "gradient_partials", "input_gradient")],
    "pgd_step": ["pgd_step", "start_point"],
    "pooled_features": ["pooled_features", "pooled_features_backward"],
}


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder, names in OPS.items() for name in names])
def test_twin_and_triton_take_the_same_arguments_in_the_same_order_as_the_op(folder, name):
    twin, triton = (import_module(f"fastarat_kernels.{folder}.{file}") for file in ("twin", "triton"))
    import_module(f"fastarat_kernels.{folder}")
    arguments = [one.name for one in getattr(torch.ops.fastarat, name).default._schema.arguments]
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (twin, triton))
    assert list(ours) == list(theirs) == arguments
    assert [one.default for one in ours.values()] == [one.default for one in theirs.values()]


def test_on_a_gpu_the_op_starts_the_triton_kernel():
    x, scalar = torch.empty(2, 3, 5, 7, device="meta"), torch.empty((), device="meta")
    with recording() as launches:
        out = _start_point._backend_fns["cuda"](x, torch.empty(2, device="meta"), scalar, scalar, -5, "linf")
    assert out.shape == x.shape and [launch.kernel.__name__ for launch in launches] == ["_linf_start_kernel"]
