"""Operators on the simulated GPU compute true values, on the CPU, in the same memory (SIMGPU_VALUES=1).

An operator still launches what it launches, which does nothing; then its CPU version runs on aliases of the tensors'
bytes: at once, or, while a stream captures, at each replay of the graph. fastarat's own operators compute by their
PyTorch twins. What inductor compiles still computes nothing.

Without SIMGPU_VALUES only those operators read what is there whose result has a shape that depends on it.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

# These move bytes, or move nothing: they work as they are.
AS_THEY_ARE = {
    *("empty", "empty_strided", "as_strided", "view", "_reshape_alias", "set_", "resize_", "_resize_output_"),
    *("_local_scalar_dense", "record_stream", "_pin_memory", "is_pinned", "unfold", "resize_as_", "view_as_real"),
    *("view_as_complex", "alias", "detach", "_to_copy", "lift", "clone", "_has_same_storage_numel", "is_set_to"),
    *("_assert_async", "data", "expand", "select", "slice", "squeeze", "unsqueeze", "permute", "transpose", "split"),
}
# The shape of what these return, or whether they return, hangs on values.
SHAPED_BY_VALUES = {"nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "_unique", "equal"}
NOT_UNDER_CUDA = {"convolution", "convolution_backward", "convolution_overrideable", "copy_"}
"""operators that have one function for all devices"""

CPU = torch.device("cpu")
KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

simgpu = ctypes.CDLL("libsimgpu.so")
simgpu.simgpu_bytes.restype = ctypes.c_void_p
simgpu.simgpu_bytes.argtypes = [ctypes.c_void_p]
simgpu.simgpu_submit.argtypes = [ctypes.c_void_p, CALLBACK, ctypes.c_void_p]

inside = threading.local()
"""`.operator`: true in threads that run an operator, what it calls in turn computes nothing by itself"""
captured: list[Any] = []
"""functions that graphs call: nothing else keeps them"""
libraries: list[torch.library.Library] = []


def alias(tensor: Tensor) -> Tensor:
    """The same bytes as a tensor on the CPU. It does not keep them."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    where = simgpu.simgpu_bytes(storage.data_ptr())
    bytes_there = torch._C._construct_storage_from_data_pointer(where, CPU, storage.nbytes())
    plain = torch.empty(0, dtype=tensor.dtype)
    plain.set_(bytes_there, tensor.storage_offset(), tensor.shape, tensor.stride())
    return torch._neg_view(plain) if tensor.is_neg() else plain


def on_cpu(given: Any) -> Any:
    """An operator's arguments as its CPU version takes them."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return alias(value) if value.is_cuda else value
        if isinstance(value, torch.device) and value.type == "cuda":
            return CPU
        return None if isinstance(value, torch.Generator) else value

    return tree_map(moved, given)


def cpu_version(op: Any, args: Any, kwargs: Any) -> Any:
    """What the operator returns for arguments on the CPU."""
    if op.__name__.startswith("cudnn_convolution."):
        x, weight, padding, stride, dilation, groups = args[:6]
        still = [0] * len(padding)
        return torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, False, still, groups)
    if op.__name__.startswith("cudnn_batch_norm."):
        return torch.ops.aten.native_batch_norm(*args)
    if op.__name__.startswith("cudnn_batch_norm_backward."):
        x, gradient, weight, mean, variance, saved_mean, saved_scale, eps = args[:8]
        saved = (mean, variance, saved_mean, saved_scale)
        return torch.ops.aten.native_batch_norm_backward(gradient, x, weight, *saved, True, eps, [True] * 3)
    if any(isinstance(a, int | float) and "Tensor" in str(f.type) for a, f in zip(args, op._schema.arguments)):  # noqa: B905
        return op.overloadpacket(*args, **kwargs)  # a number came where a tensor is declared
    return op(*args, **kwargs)


def fill(to: Tensor, value: Tensor, op: Any) -> None:
    """Let a result have the value that the CPU found."""
    if to.shape == value.shape:
        to.copy_(value)
    elif to.shape[1:] == value.shape[1:] and len(value) == 1:
        to.zero_()  # sums in parts, which a twin makes in one go: the first part is the whole
        to[:1] = value
    elif value.numel() and to.numel():
        raise AssertionError(f"{op}: {tuple(to.shape)} on the GPU, {tuple(value.shape)} on the CPU")


def submit(compute: Callable[[], None], device: torch.device) -> None:
    """Compute at once, or at each replay of the graph that the current stream captures."""
    if not torch.cuda.is_current_stream_capturing():
        compute()
        return
    function = CALLBACK(lambda _: compute())
    captured.append(function)
    simgpu.simgpu_submit(torch.cuda.current_stream(device).cuda_stream, function, None)


def launched(op: Any, own: Any, args: Any, kwargs: Any) -> Any:
    """Run the operator as it is, then fill its results with true values."""
    formals = op._schema.arguments
    boxed = [
        torch.tensor(a) if isinstance(a, int | float) and str(f.type) == "Tensor" else a
        for a, f in zip(args, formals, strict=False)
    ]
    if getattr(inside, "operator", False):
        return own.call_boxed(KEYS, *boxed, **kwargs)
    inside.operator = True
    try:
        results = own.call_boxed(KEYS, *boxed, **kwargs)
    finally:
        inside.operator = False
    tensors = [t for t in tree_leaves((args, kwargs, results)) if isinstance(t, Tensor) and t.is_cuda]
    device = tensors[0].device if tensors else torch.device("cuda", torch.cuda.current_device())
    cpu_args, cpu_kwargs, into = on_cpu((args, kwargs, results))

    @torch.no_grad()
    def compute() -> None:
        found = cpu_version(op, cpu_args, cpu_kwargs)
        for to, value in zip(tree_leaves(into), tree_leaves(found), strict=False):
            both = isinstance(to, Tensor) and isinstance(value, Tensor)  # a gradient that nobody wants is none
            if both and to.data_ptr() != value.data_ptr():
                fill(to, value, op)

    submit(compute, device)
    return results


def computed(op: Any, args: Any, kwargs: Any) -> Any:
    """What the CPU version returns, as tensors on the GPU: for shapes that hang on values."""
    device = next(t.device for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_cuda)

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        result = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        if value.numel():
            alias(result).copy_(value)
        return result

    return tree_map(moved, cpu_version(op, *on_cpu((args, kwargs))))


def replace(library: torch.library.Library, full: str) -> None:
    """Let the operator `full` (namespace::name.overload) have true values on the simulated GPU."""
    namespace, _, rest = full.partition("::")
    name, _, overload = rest.partition(".")
    op = getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")
    own = torch.library.get_kernel(full, "CUDA")

    def call(*args: Any, **kwargs: Any) -> Any:
        if name in SHAPED_BY_VALUES:
            return computed(op, args, kwargs)
        return launched(op, own, args, kwargs)

    library.impl(rest, call, "CUDA", allow_override=True)


def replace_one(full: str) -> None:
    """The same for one operator, in a library of its own."""
    libraries.append(torch.library.Library(full.partition("::")[0], "FRAGMENT"))
    replace(libraries[-1], full)


def install(*, all_operators: bool) -> None:
    """Give PyTorch's operators true values; those that are shaped by values alone, unless `all_operators`."""
    library = torch.library.Library("aten", "IMPL")
    libraries.append(library)
    for full in torch._C._dispatch_get_all_op_names():
        name = full.removeprefix("aten::").partition(".")[0]
        if not full.startswith("aten::") or name in AS_THEY_ARE:
            continue
        on_gpu = torch._C._dispatch_has_kernel_for_dispatch_key(full, "CUDA") or name in NOT_UNDER_CUDA
        if on_gpu and (all_operators or name in SHAPED_BY_VALUES):
            replace(library, full)
