"""Number formats: float64 and float32 as they are, bf16 and fp16 by autocast, fp16 with loss scaling."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fastarat.attacks.pgd import FP16_FACTOR

Dtype = Literal["fp64", "fp32", "bf16", "fp16"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_GROWTH_INTERVAL = 2000
_ROUNDING = 1.01
"""on a mean over processes: more than it is off in bf16, less than one factor of 50 that was halved takes from it"""


class Precision:
    """Autocast and loss scaling of one run. Weights and images stay float32 (float64 for fp64)."""

    def __init__(self, dtype: Dtype, device: torch.device):
        self.dtype: Dtype = dtype
        self.device_type = device.type
        self.parameter_dtype = torch.float64 if dtype == "fp64" else torch.float32
        self.autocast_dtype = _AUTOCAST.get(dtype)
        self.scales = dtype == "fp16"
        # The scale, and the number of good steps since it last changed (Micikevicius et al., 2018).
        self.scale = torch.full((), 2.0**16 if self.scales else 1.0, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)
        # See `fastarat.attacks.pgd.GradientContext`.
        self.attack_factor = torch.full((), float(FP16_FACTOR), device=device) if self.scales else None

    def autocast(self) -> AbstractContextManager:
        """The context for forwards and losses."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, self.autocast_dtype)

    def constant_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The parameters by name as constants, in their shapes: those of convolutions and linear layers in autocast's
        format, the others in their own.

        For the attack, which differentiates by the images alone: cast once a step, not once a forward.
        """
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        for module_name, module in model.named_modules():
            if self.autocast_dtype is not None and isinstance(module, nn.Linear | _ConvNd):
                for name, parameter in module.named_parameters(module_name, recurse=False):
                    weights[name] = parameter.detach().to(self.autocast_dtype)
        return weights

    def scaled(self, loss: Tensor) -> Tensor:
        """The scalar loss to differentiate: times the scale for fp16."""
        return loss * self.scale if self.scales else loss

    @torch.no_grad()
    def unscale(self, gradients: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The true gradients, in their shapes and dtypes, and a float32 scalar: 1 if all are finite, else 0.

        Without scaling, as they are given, and None.

        An overflow halves the scale and gives zeros; 2,000 good steps double it.
        """
        if not self.scales:
            return gradients, None
        finite = torch.stack([g.isfinite().all() for g in gradients]).all()
        gradients = [torch.nan_to_num(g / self.scale, nan=0.0, posinf=0.0, neginf=0.0) for g in gradients]
        self.good_steps.copy_(torch.where(finite, self.good_steps + 1, 0))
        grow = self.good_steps >= _GROWTH_INTERVAL
        self.scale.mul_(torch.where(finite, torch.where(grow, 2.0, 1.0), 0.5)).clamp_(min=1)
        self.good_steps.masked_fill_(grow, 0)
        return gradients, finite.float()

    @torch.no_grad()
    def agree(self, mean: Tensor) -> None:
        """Let the attack's factor be the same in all processes: the power of two at its `mean` over them, or below it.

        Each has halved its own for its images. A checkpoint holds one, and a run that goes on from it has to take the
        steps that it would have taken.
        """
        assert self.attack_factor is not None
        # NCCL multiplies by 1/N before it adds: the mean of equal factors may lie a little below them.
        bits = (mean * _ROUNDING).view(torch.int32) & ~0x7FFFFF  # without the 23 bits of a float32's mantissa
        self.attack_factor.copy_(bits.view(torch.float32))

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        state = {"scale": self.scale, "good_steps": self.good_steps}
        return state if self.attack_factor is None else {**state, "attack_factor": self.attack_factor}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; what a format that scales nothing gave says nothing of the scale of fp16."""
        if self.attack_factor is None or "attack_factor" not in state:
            return
        self.scale.copy_(state["scale"])
        self.good_steps.copy_(state["good_steps"])
        self.attack_factor.copy_(state["attack_factor"])
