"""Any net to split batch-norms, and a branch of a split net back to ordinary ones."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastarat.errors import UserError
from fastarat.models.settings import BatchNormKind, Branch
from fastarat.models.split_batch_norm import (
    BRANCHES,
    PlainBatchNorm2d,
    SplitBatchNorm2d,
    connect,
    current_pass,
    pooled,
)


def convert_to_split_batch_norm(model: nn.Module, kind: BatchNormKind = "split") -> nn.Module:
    """A copy of `model` whose `nn.BatchNorm2d` layers are `SplitBatchNorm2d`, every branch as the original.

    Raises `UserError` where a batch-norm has no affine parameters or running statistics to split.
    """
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            _replace(model, name, _split(layer, name, kind))
    connect(model)
    return model


def plain_branch(model: nn.Module, branch: Branch = "adv") -> nn.Module:
    """A copy of a split net with one branch's ordinary batch-norms: the deployed model, in eval mode."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, SplitBatchNorm2d):
            _replace(model, name, _plain(layer, branch))
    if current_pass(model) is not None:
        del model.current
    return model.eval()


def _split(layer: nn.BatchNorm2d, name: str, kind: BatchNormKind) -> SplitBatchNorm2d:
    if not layer.affine or layer.running_mean is None or layer.running_var is None:
        raise UserError(f"batch-norm {name!r} has no affine parameters or no running statistics to split")
    new = SplitBatchNorm2d(layer.num_features, kind, layer.eps).to(layer.weight)
    with torch.no_grad():
        new.weight.copy_(layer.weight.expand_as(new.weight))
        new.bias.copy_(layer.bias.expand_as(new.bias))
        new.running_mean.copy_(layer.running_mean.expand_as(new.running_mean))
        new.running_var.copy_(layer.running_var.expand_as(new.running_var))
    return new


def _plain(layer: SplitBatchNorm2d, branch: Branch) -> PlainBatchNorm2d:
    i = BRANCHES.index(branch) if layer.kind == "split" else 0
    new = PlainBatchNorm2d(layer.weight.shape[1], eps=layer.eps).to(layer.weight)
    assert new.running_mean is not None and new.running_var is not None
    with torch.no_grad():
        new.weight.copy_(layer.weight[i])
        new.bias.copy_(layer.bias[i])
        new.running_mean.copy_(layer.running_mean[i])
        new.running_var.copy_(layer.running_var[i])
    return new


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def tap_layers(model: nn.Module, names: tuple[str, ...]) -> None:
    """Record the pooled outputs of these layers in every `forward_with_features`.

    A batch-norm records its own output. Any other module gets a class of its own, once and here, whose
    forward records what the original returns: no hooks in the hot path, no change to parameter names.
    Raises `UserError` for a layer that the net does not have.
    """
    modules = dict(model.named_modules())
    layer_of = getattr(model, "layer_of", lambda name: name)
    for name in names:
        layer = modules.get(layer_of(name))
        if layer is None:
            aligned = getattr(model, "aligned_layers", ())
            raise UserError(f"Unknown layer {name!r}. This net's aligned layers are {', '.join(aligned)}.")
        if not isinstance(layer, SplitBatchNorm2d):
            layer.__class__ = _recording(type(layer))
            layer.current = current_pass(model)  # type: ignore[assignment]
        layer.tap = name  # type: ignore[assignment]


def _recording(cls: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, *args: Tensor, **kwargs: Tensor) -> Tensor:
        out = cls.forward(self, *args, **kwargs)
        if self.current.record:
            self.current.features[self.tap] = pooled(out)
        return out

    return type(f"Recording{cls.__name__}", (cls,), {"forward": forward})


def feature_widths(model: nn.Module, image_shape: tuple[int, int, int], names: tuple[str, ...]) -> dict[str, int]:
    """How many features each tapped layer gives for images [C, H, W], found by one forward."""
    from fastarat.models.split_batch_norm import forward_with_features

    parameter = next(model.parameters())
    x = torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        _, features = forward_with_features(model, x, "adv", "eval")
    return {name: features[name].shape[1] for name in names}
