"""All-gathers that need not wait for one another travel as one."""

from unittest.mock import patch

import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.fx import Graph

from fastarat.common.distributed import World
from fastarat.config.attack import AttackConfig
from fastarat.config.method import ARATConfig
from fastarat.config.model import MODELS
from fastarat.methods.registry import build_method
from fastarat.models.registry import build_model
from fastarat.models.split_batch_norm import SplitBatchNorm2d, forward_context
from fastarat.training.compiling.compiled import build_step
from fastarat.training.compiling.graph_passes import OF_SEVERAL, GraphPasses
from fastarat.training.compiling.sent_together import _gathered_as_one
from fastarat.training.step.train_step import Controls, StepParts
from tests.helpers.captured import batch
from tests.helpers.groups import first_of_two
from tests.helpers.step_parts import parts_of

TWO_STAGES = ("fastarat.models.resnet:ResNet", {"widths": (8, 16), "strides": (1, 2), "num_blocks": (1, 1)})


def test_values_of_other_shapes_come_back_each_in_its_own(monkeypatch):
    values = [torch.randn(1, 2, 3), torch.randn(2, 4)]
    of_the_other = [torch.randn(1, 2, 3), torch.randn(2, 4)]
    other = torch.cat([each.flatten() for each in of_the_other])
    ops = torch.ops._c10d_functional
    monkeypatch.setattr(ops, "all_gather_into_tensor", lambda flat, size, group: torch.cat([flat, other]))
    monkeypatch.setattr(ops, "wait_tensor", lambda values: values)
    for found, *both in zip(_gathered_as_one(values, 2, ""), values, of_the_other, strict=True):
        assert torch.equal(found, torch.cat(both))


def synchronised(world: World, kernels) -> StepParts:
    """Those of AR-AT on a net with two blocks, one of which has a shortcut with a batch-norm."""
    with patch.dict(MODELS, tiny=TWO_STAGES):
        net = build_model("tiny", 10).to(memory_format=torch.channels_last).train()
        method = build_method(ARATConfig(), net, (3, 16, 16)).train()
    forward_context(net).group = world.group
    for predictor in method.predictors:
        predictor[1].group = world.group
    attack = AttackConfig(steps=0, start="none")
    return parts_of(net, method, attack, "fp32", world=world, kernels=kernels)


@pytest.mark.no_cover  # it is traced
@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
def test_a_step_has_fewer_collectives_than_batch_norms(kernels, monkeypatch):
    counts = []

    def all_gathers(graph: Graph) -> int:
        return sum("all_gather" in str(node.target) for node in graph.nodes)

    def record(graph, inputs):
        before = all_gathers(graph.graph)
        GraphPasses(*OF_SEVERAL)(graph.graph)
        graph.graph.lint()
        counts.append((before, all_gathers(graph.graph)))
        graph.recompile()
        return make_boxed_func(graph.forward)

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: aot_autograd(fw_compiler=record))
    with first_of_two() as world:
        parts = synchronised(world, kernels)
        num_layers = sum(isinstance(layer, SplitBatchNorm2d) for layer in parts.model.modules())
        assert num_layers == 6  # the stem's, two a block, the shortcut's; and two predictors have one each
        build_step(parts, Controls.of(parts), "compile", unroll=True, backend="recorded")(batch(0, parts))
    # The shortcut's travel with another's, and the predictors' together, both ways.
    assert counts == [(2 * (6 + 2), 2 * (5 + 1))]
