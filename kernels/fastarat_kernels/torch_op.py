"""A kernel as a PyTorch operator: its twin on a CPU, Triton on a GPU, empty tensors while a graph is traced."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch.library import CustomOpDef, custom_op


def torch_op(twin: Callable[..., Any], empty: Callable[..., Any], *, schema: str | None = None) -> CustomOpDef:
    """The op `fastarat::NAME`, which on a CPU is `twin` itself, and on a GPU `NAME` of the `triton.py` beside it.

    `twin`: gives new tensors, never its arguments or views of them. `empty`: the outputs without their values, from
    the same arguments. `schema`: as `torch.library` writes it, where the op's arguments are not to be those of the
    twin's annotations.
    """
    folder, name = twin.__module__.rpartition(".")[0], twin.__name__
    op = custom_op(f"fastarat::{name}", twin, mutates_args=(), device_types="cpu", schema=schema)

    @op.register_kernel("cuda")
    def _(*args: Any) -> Any:
        return getattr(import_module(f"{folder}.triton"), name)(*args)

    op.register_fake(empty)
    return op
