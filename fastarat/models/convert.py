"""Any net to split batch-norms, and a branch of a split net back to ordinary ones."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from fastarat.common.errors import UserError, first_line
from fastarat.config.model import BatchNormKind, Branch
from fastarat.models.features import Recording
from fastarat.models.split_batch_norm import BRANCHES, PlainBatchNorm2d, SplitBatchNorm2d, connect

NORMALISING = (_BatchNorm.forward, nn.SyncBatchNorm.forward, PlainBatchNorm2d.forward)
"""what a batch-norm's forward is that does nothing else, unless it is asked to"""


class SplitBatchNormAct(SplitBatchNorm2d):
    """A split batch-norm with dropout and activation behind it, as timm has them in one layer."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """[N, C, …] to the same shape: as `SplitBatchNorm2d`, then dropout and activation."""
        return self.act(self.drop(super().forward(x, residual, relu)))


def convert_to_split_batch_norm(model: nn.Module, kind: BatchNormKind = "split") -> nn.Module:
    """A copy of `model` whose batch-norms (1d, 2d, 3d, synchronised) are `SplitBatchNorm2d`, every branch as the
    original; their hooks are kept.

    Raises `UserError` for a batch-norm that has no affine parameters, running statistics or fixed momentum or that does
    more than normalise, and for a net that cannot be copied.
    """
    model = _with_layers(copied(model), _BatchNorm, lambda layer, name: _split(layer, name, kind))
    connect(model)
    return model


def plain_branch(model: nn.Module, branch: Branch = "adv") -> nn.Module:
    """A copy of a split net with one branch's ordinary batch-norms: the deployed model, in eval mode.

    Raises `UserError` for a net that cannot be copied.
    """
    model = copied(model)
    for layer in model.modules():
        if isinstance(layer, Recording):
            layer.__class__ = type(layer).original  # type: ignore[assignment]
            del layer.tap_context, layer.tap_names
    return _with_layers(model, SplitBatchNorm2d, lambda layer, name: _plain(layer, branch)).eval()


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. Raises `UserError` with one line for a net that has none.

    Weights that torch.nn.utils.weight_norm and spectral_norm make of others anew before every forward are copied as
    values: PyTorch copies no tensor that has a history.
    """
    if any(map(is_lazy, model.parameters())):
        raise UserError("the net cannot be copied before its lazy layers know their sizes: run it once before")
    made = [value for part in model.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in made if not value.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a part of another's net raises when it is copied
        reason = first_line(error)[:200]
        raise UserError(f"the net cannot be copied ({reason}): give it parts that copy.deepcopy takes") from error


TENSORS = ("weight", "bias", "running_mean", "running_var")
HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
"""where a module keeps what is called around its forward and backward"""


def _keep_hooks(layer: nn.Module, new: nn.Module) -> None:
    for name in HOOKS:
        setattr(new, name, copy.copy(getattr(layer, name)))


def _with_layers(model: nn.Module, kind: type[nn.Module], replacement: Callable[[Any, str], nn.Module]) -> nn.Module:
    """Replace every layer of this kind, one that has several names under each of them."""
    root = nn.ModuleDict({"net": model})
    done: dict[nn.Module, nn.Module] = {}
    for name, layer in list(root.named_modules(remove_duplicate=False)):
        if isinstance(layer, kind):
            if layer not in done:
                done[layer] = replacement(layer, name.removeprefix("net."))
            parent, _, leaf = name.rpartition(".")
            setattr(root.get_submodule(parent), leaf, done[layer])
    return root["net"]


def _split(layer: _BatchNorm, name: str, kind: BatchNormKind) -> SplitBatchNorm2d:
    if layer.affine and not {"weight", "bias"} <= set(layer._parameters):
        raise UserError(f"batch-norm {name!r} has a weight that is made of others, as by weight_norm: take that away")
    if not layer.affine or layer.running_mean is None or layer.running_var is None or layer.momentum is None:
        raise UserError(f"batch-norm {name!r} needs affine parameters, running statistics and a momentum to be split")
    does_more = type(layer).forward not in NORMALISING
    if does_more and not {"drop", "act"} <= set(layer._modules):
        cls = type(layer).__name__
        raise UserError(f"batch-norm {name!r} is a {cls}, which may do more than normalise: split it up")
    new = (SplitBatchNormAct if does_more else SplitBatchNorm2d)(layer.num_features, kind, layer.eps, layer.momentum)
    new.to(layer.weight)
    with torch.no_grad():
        for name in TENSORS:
            getattr(new, name).copy_(getattr(layer, name))  # in every set
    new.plain = type(layer) if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm3d) or does_more else PlainBatchNorm2d
    if isinstance(new, SplitBatchNormAct):
        new.drop, new.act = layer.drop, layer.act  # type: ignore[assignment]
    _keep_hooks(layer, new)
    new.weight.requires_grad_(layer.weight.requires_grad)
    new.bias.requires_grad_(layer.bias.requires_grad)
    return new.train(layer.training)


def _plain(layer: SplitBatchNorm2d, branch: Branch) -> _BatchNorm:
    i = BRANCHES.index(branch) if layer.kind == "split" else 0
    new = layer.plain(layer.weight.shape[1], layer.eps, layer.momentum).to(layer.weight)
    if isinstance(layer, SplitBatchNormAct):
        new.drop, new.act = layer.drop, layer.act
    with torch.no_grad():
        for name in TENSORS:
            getattr(new, name).copy_(getattr(layer, name)[i])
    _keep_hooks(layer, new)
    return new
