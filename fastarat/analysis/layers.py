"""Which layers of a net are looked at, what they are called, and means over the aligned ones."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from torch import Tensor, nn

from fastarat.models.features import tap_layers
from fastarat.models.split_batch_norm import SplitBatchNorm2d

Values = dict[str, float | None]
"""a number for each layer; None where it is not defined"""


def module_of(model: nn.Module, layer: str) -> str:
    """The name of the module behind a layer's published name."""
    return getattr(model, "layer_of", lambda name: name)(layer)


def observe(model: nn.Module, aligned: Sequence[str]) -> tuple[str, ...]:
    """Let every batch-norm and every aligned layer record its pooled output; their names in the modules' order.

    A layer keeps the name under which it is aligned.
    """
    published = {module_of(model, layer): layer for layer in aligned}
    layers = []
    for name, module in model.named_modules():
        if name in published or isinstance(module, SplitBatchNorm2d):
            layers.append(published.get(name, name))
            recorded = getattr(module, "taps", ()) or getattr(module, "tap_names", ())
            if layers[-1] not in recorded:
                tap_layers(model, (layers[-1],))
    return tuple(layers)


def is_split(layer: nn.Module) -> bool:
    """Whether it is a batch-norm with a parameter set for each branch."""
    return isinstance(layer, SplitBatchNorm2d) and layer.kind == "split"


def parameter_groups(model: nn.Module) -> dict[str, list[Tensor]]:
    """The parameters of each convolution, batch-norm and linear layer: those that a module holds itself."""
    own: dict[str, list[Tensor]] = {name: [*module.parameters(recurse=False)] for name, module in model.named_modules()}
    return {name: parameters for name, parameters in own.items() if parameters}


def mean_over(values: Mapping[str, float | None], model: nn.Module, layers: Sequence[str]) -> float | None:
    """The mean of what was measured at these layers, or inside them where they are made of several."""
    modules = [module_of(model, layer) for layer in layers]
    inside = tuple(f"{module}." for module in modules)
    return mean(v for name, v in values.items() if module_of(model, name) in modules or name.startswith(inside))


def mean_over_shared(values: Mapping[str, float | None], model: nn.Module) -> float | None:
    """The mean over convolutions and linear layers: weights that clean and adversarial images always share, where
    batch-norms may have a set for each, on which their gradients do not meet."""
    modules = dict(model.named_modules())
    return mean(v for name, v in values.items() if not isinstance(modules[name], SplitBatchNorm2d))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is defined; None if nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
