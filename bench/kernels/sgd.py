"""The optimiser's cases of the kernel benchmark."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from fastarat_kernels.sgd import sgd, twin
from torch import Tensor, nn

from bench.kernels.cases import NETS, Draw, Function, Inputs, KernelCase, Scale, installed, nets, variants_of

MOMENTUM, WEIGHT_DECAY, LEARNING_RATE = 0.9, 5e-4, 0.1


@cache
def apex_sgd() -> Any:
    """apex's FusedSGD, or None."""
    return installed("apex.optimizers", "FusedSGD")


def cases(scale: Scale, dtype: torch.dtype) -> Iterator[KernelCase]:
    """The parameters of both nets, without and with what else one pass can do: shadow weights and an average."""
    of_nets = [[parameter.numel() for parameter in net.parameters()] for net in nets()]
    sizes = {"smoke": [64, 48, 16]} if scale.smoke else dict(zip(NETS, of_nets, strict=True))
    for net, tensors in sizes.items():
        tensors[-1] += -sum(tensors) % 16  # as fastarat pads its flat buffers, so that loads are of 16 bytes
        shadow_dtype = None if dtype == torch.float32 else dtype
        yield _sgd(net, tensors, torch.float32, shadow_dtype=shadow_dtype, average=False)
        yield _sgd(net, tensors, dtype, shadow_dtype=shadow_dtype, average=True)


def _sgd(
    net: str, sizes: list[int], gradient_dtype: torch.dtype, *, shadow_dtype: torch.dtype | None, average: bool
) -> KernelCase:
    num = sum(sizes)
    ours: Function = partial(_in_place, sgd)
    flat: Function = partial(_in_place, twin.sgd)
    variants: dict[str, Callable[[], Function]] = {
        "eager": lambda: partial(_sgd_by_tensors, sizes, _foreach_sgd),
        "torch-fused": lambda: partial(_sgd_by_tensors, sizes, _torch_fused_sgd),
        # On flat buffers: inductor's best case, one kernel for all tensors.
        "inductor": variants_of(flat, ours)["inductor"],
        "triton": lambda: ours,
    }
    if apex_sgd():
        variants["apex"] = lambda: partial(_sgd_by_tensors, sizes, _ApexSgd())
    shadow_size = shadow_dtype.itemsize if shadow_dtype else 0
    extras = " shadow" * (shadow_dtype is not None) + " average" * average
    return KernelCase(
        "sgd",
        f"{net} {num / 1e6:.1f} M{extras}",
        (num,),
        shadow_dtype or torch.float32,
        # Weights and momenta are read and written, gradients read, shadow weights written, an average read and written.
        {"forward": num * (16 + gradient_dtype.itemsize + shadow_size + 8 * average)},
        partial(_sgd_inputs, num=num, gradient_dtype=gradient_dtype, shadow_dtype=shadow_dtype, average=average),
        flat,
        variants,
        in_place=True,
    )


def _sgd_inputs(
    draw: Draw, *, num: int, gradient_dtype: torch.dtype, shadow_dtype: torch.dtype | None, average: bool
) -> Inputs:
    return {
        "parameters": draw.normal(num),
        "gradients": draw.normal(num).to(gradient_dtype),
        "momenta": draw.normal(num),
        "learning_rate": draw.scalar(LEARNING_RATE),
        "shadow": None if shadow_dtype is None else torch.zeros(num, dtype=shadow_dtype, device=draw.device),
        "average": draw.normal(num) if average else None,
        "share": draw.scalar(0.25) if average else None,
    }


def _in_place(update: Callable[..., None], **buffers: Tensor | None) -> dict[str, Tensor]:
    """The buffers that a flat update changes, by name."""
    update(**buffers, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    return _changed(buffers)


def _changed(buffers: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    found = {name: buffers[name] for name in ("parameters", "momenta", "shadow", "average")}
    return {name: value for name, value in found.items() if value is not None}


Update = Callable[[list[Tensor], list[Tensor], list[Tensor], Tensor], None]


def _sgd_by_tensors(sizes: list[int], update: Update, **buffers: Tensor | None) -> dict[str, Tensor]:
    """As PyTorch has it: `update` on a list of tensors, then a pass for shadow weights and some for an average."""
    parts = {
        name: list(value.split(sizes))
        for name, value in buffers.items()
        if value is not None and name not in ("learning_rate", "share")
    }
    gradients, learning_rate, share = (buffers[name] for name in ("gradients", "learning_rate", "share"))
    assert gradients is not None and learning_rate is not None
    weights = parts["parameters"]
    update(weights, list(gradients.float().split(sizes)), parts["momenta"], learning_rate)
    if "shadow" in parts:
        torch._foreach_copy_(parts["shadow"], weights)
    if share is not None:
        away = torch._foreach_sub(weights, parts["average"])
        torch._foreach_mul_(away, share)
        torch._foreach_add_(parts["average"], away)
    return _changed(buffers)


def _foreach_sgd(weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], learning_rate: Tensor) -> None:
    """What torch.optim.SGD does by default on a GPU, with the learning rate on the device."""
    decayed = torch._foreach_add(gradients, weights, alpha=WEIGHT_DECAY)
    torch._foreach_mul_(momenta, MOMENTUM)
    torch._foreach_add_(momenta, decayed)
    torch._foreach_sub_(weights, torch._foreach_mul(momenta, learning_rate))


def _torch_fused_sgd(
    weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], learning_rate: Tensor
) -> None:
    """torch.optim.SGD(fused=True)."""
    torch._fused_sgd_(
        *(weights, gradients, momenta),
        weight_decay=WEIGHT_DECAY,
        momentum=MOMENTUM,
        lr=learning_rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


class _ApexSgd:
    """apex's FusedSGD: its learning rate is a number, and it is built once for each set of buffers, not in a graph."""

    def __init__(self) -> None:
        self.built: dict[int, tuple[Any, list[nn.Parameter]]] = {}

    def __call__(
        self, weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], learning_rate: Tensor
    ) -> None:
        address = weights[0].data_ptr()
        if address not in self.built:
            parameters = [nn.Parameter(weight) for weight in weights]
            optimizer = apex_sgd()(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
            for parameter, momentum in zip(parameters, momenta, strict=True):
                optimizer.state[parameter]["momentum_buffer"] = momentum
            self.built[address] = (optimizer, parameters)
        optimizer, parameters = self.built[address]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
