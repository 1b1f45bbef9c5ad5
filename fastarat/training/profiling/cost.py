"""What a training step costs, counted without running it: launches, bytes and matrix work, by part.

Every operation that PyTorch dispatches is counted on tensors without memory, by the launches and passes that its
CUDA kernels take. A custom op is one launch that reads its inputs and writes its outputs once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from fastarat_kernels.implementations import TRITON
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastarat.common.distributed import World
from fastarat.models.batch_norm import BatchNorm1d
from fastarat.models.split_batch_norm import forward_context
from fastarat.training.profiling.parts import PARTS, REST, Part, Shape, Shapes
from fastarat.training.state import Training
from fastarat.training.step.train_step import EAGER, StepParts


class Cost(NamedTuple):
    """`bytes`: every input read once, every output written once. `flops`: of convolutions and matrix products, two
    for a multiplication with its addition."""

    launches: int = 0
    bytes: int = 0
    flops: int = 0


def added(*costs: Cost) -> Cost:
    """The sum of costs."""
    return Cost(*map(sum, zip(Cost(), *costs, strict=True)))


def step_cost(training: Training, fused: bool = False) -> dict[Part, Cost]:
    """What one training step costs by part (all `PARTS`, in order), with the loading of its batch; takes seconds.

    Counted operation by operation as the step is written, with the kernels of `training`; or, `fused`, with those
    that fuse batch-norm and the attack's update and an optimizer that passes over its tensors once, which is the
    least that a compiled step moves. Of one process, without what it exchanges with others. Changes nothing of the
    run: no weights, no statistics, no random state.
    """
    counts: Counter[tuple[Part, str]] = Counter()

    def count(run: Callable[[], Any], part_of: Callable[..., Part | None], times: int = 1) -> Any:
        with CostCounter(lambda *operation: part_of(*operation) or REST) as counter:
            result = run()
        for part, cost in counter.costs.items():
            for name, value in cost._asdict().items():
                counts[part, name] += times * value
        return result

    loader, controls, known = training.loader, training.controls, Shapes.of(training)
    with FakeTensorMode(allow_non_fake_inputs=True), _alone(training.parts, fused) as parts:
        batches = iter(loader.batches(1, loader.steps_per_epoch - 1))
        batch = count(lambda: next(batches), lambda *_: "augmentation")
        # What an epoch costs before its first batch is none of the step's.
        count(lambda: list(loader.batches(1, loader.steps_per_epoch)), lambda *_: "augmentation", -1)
        first, fixed = count(
            lambda: EAGER.start_attack(parts, batch, controls),
            lambda *operation: known.part_of(*operation) or "attack update",
        )
        x_adv = count(
            lambda: EAGER.attack_step(parts, first, batch.y, fixed, controls), known.part_of, parts.attack.steps
        )
        count(lambda: EAGER.descend(parts, fixed.centre, x_adv, batch.y, controls), known.part_of)
    costs: dict[Part, Cost] = {part: Cost(*(counts[part, name] for name in Cost._fields)) for part in PARTS}
    if fused:
        costs["optimizer"] = _one_pass(parts)
    return costs


def _one_pass(parts: StepParts) -> Cost:
    """Of an optimizer that reads parameters, gradients and momenta once, and writes parameters and momenta."""
    return Cost(1, 5 * sum(map(_bytes, parts.parameters)))


@contextmanager
def _alone(parts: StepParts, fused: bool) -> Iterator[StepParts]:
    """The parts of a step that exchanges nothing with other processes."""
    contexts = [context for net in (parts.model, parts.method) if (context := forward_context(net)) is not None]
    norms = [layer for layer in parts.method.modules() if isinstance(layer, BatchNorm1d)]
    synchronised: list[Any] = [*contexts, *norms]
    groups, kernels = [layer.group for layer in synchronised], contexts[0].kernels
    counted = TRITON if fused else kernels
    for layer in synchronised:
        layer.group = None
    for context in contexts:
        context.kernels = counted
    try:
        yield replace(parts, world=World(parts.world.device), kernels=counted)
    finally:
        for context in contexts:
            context.kernels = kernels
        for layer, group in zip(synchronised, groups, strict=True):
            layer.group = group


# Operations that move no data: they return views, or only allocate.
_FREE = {"detach", "empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "alias", "lift_fresh"}
# Channels-last batch-norm of PyTorch on CUDA: statistics, their inverse, transform; reduction, input gradient.
_LAUNCHES = {"native_batch_norm": 3, "native_batch_norm_backward": 2, "move_running_statistics": 2}
_EXTRA_READS = {"native_batch_norm": (0,), "native_batch_norm_backward": (0, 1)}
# They read no more of their first tensor than they write.
_GATHERS = {"index", "augment"}
_TENSORS_PER_FOREACH_LAUNCH = 110


class CostCounter(TorchDispatchMode):
    """Counts what is dispatched under it; `part_of` is told the operation's name and the shapes of its tensors."""

    def __init__(self, part_of: Callable[[str, Iterable[Shape]], Part] = lambda *_: REST):
        super().__init__()
        self.part_of = part_of
        self.costs: dict[Part, Cost] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        cost = _cost(func, args, kwargs, out)
        if cost.launches:
            shapes = [tuple(t.shape) for t in _tensors((args, kwargs, out))]
            part = self.part_of(func.overloadpacket.__name__, shapes)
            self.costs[part] = added(self.costs.get(part, Cost()), cost)
        return out

    @property
    def total(self) -> Cost:
        """All parts together."""
        return added(*self.costs.values())


def _cost(func: Any, args: Any, kwargs: Any, out: Any) -> Cost:
    """What one eager operation costs."""
    name = func.overloadpacket.__name__
    # Tensors without memory ask for their device by an operation, `prim::device`.
    if func.is_view or name in _FREE or func.namespace == "prim":
        return Cost()
    given, made = _tensors((args, kwargs)), _tensors(out)
    size = sum(map(_bytes, {id(t): t for t in given}.values())) + sum(map(_bytes, made))
    size += sum(_bytes(args[i]) for i in _EXTRA_READS.get(name, ()))
    launches = _LAUNCHES.get(name, 1)
    if name in _GATHERS:
        size -= max(0, _bytes(args[0]) - made[0].numel() * args[0].element_size())
    elif name == "convolution_backward":
        launches = sum(args[-1])
    elif name.startswith("_foreach"):
        launches = -(-len(args[0]) // _TENSORS_PER_FOREACH_LAUNCH)
    if not made:
        # What is changed in place is returned by all but operations on lists, and our own.
        size += sum(map(_bytes, _changed(func, args)))
    formula = flop_registry.get(func.overloadpacket)
    return Cost(launches, size, formula(*args, **kwargs, out_val=out) if formula else 0)


def _changed(func: Any, args: Any) -> list[Tensor]:
    """The tensors that an operation writes to, by its signature."""
    changes = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    return _tensors([arg for arg, changed in zip(args, changes, strict=False) if changed])


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
