"""What a step costs is counted part by part, without running it and without touching the run."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON, Kernels
from torch._subclasses.fake_tensor import FakeTensorMode

from fastarat.common.distributed import World
from fastarat.config.model import ModelConfig
from fastarat.config.recipes import recipe
from fastarat.data.images.dataset import Dataset, Images
from fastarat.models.split_batch_norm import forward_context
from fastarat.training.build import build_training
from fastarat.training.profiling.cost import Cost, CostCounter, added, step_cost
from fastarat.training.profiling.parts import PARTS, Part
from fastarat.training.state import Training
from fastarat.training.step.precision import Dtype
from fastarat.training.step.train_step import train_step
from tests.helpers.step_parts import nets_of_one_block


def built(
    name: str, batch: int, steps: int, kernels: Kernels = PYTORCH, dtype: Dtype = "bf16", model: str | None = None
) -> Training:
    """A recipe's training on random images of CIFAR-10's size, of its net or `model`."""
    config = recipe(name)
    config = replace(config, model=ModelConfig(model)) if model else config
    attack = replace(config.attack, steps=steps)
    config = replace(config, batch=batch, num_validation_images=0, num_train_images=None, attack=attack)
    images = Images(np.zeros((3 * batch, 32, 32, 3), np.uint8), np.arange(3 * batch) % 10)
    dataset = Dataset("random", images, images, tuple("0123456789"), 255, "")
    with nets_of_one_block():
        return build_training(config, dataset, World(torch.device("cpu")), dtype=dtype, kernels=kernels)


# Marked no_cover: hundreds of operations are dispatched in Python; the parts in every form count the lines.


@cache
def cost_of(name: str, dtype: Dtype, kernels: Kernels) -> dict[Part, Cost]:
    """Of a step with one attack step."""
    return step_cost(built(name, 8, 1, kernels, dtype))


def test_an_operation_reads_its_inputs_and_writes_its_outputs_once():
    x, y = torch.ones(4, 8), torch.ones(4, 8)
    with CostCounter() as counter:
        total = x + y  # 3 x 128 bytes
        total.view(8, 4).t()  # moves nothing
        total.mul_(2)  # read and written, with no second tensor
    assert counter.total == Cost(2, 3 * 128 + 2 * 128, 0)


def test_asking_a_tensor_for_its_device_is_no_launch():
    # As autograd does of the tensors that it is given.
    with FakeTensorMode():
        x = torch.empty(4, 8, requires_grad=True)
        with CostCounter() as counter:
            torch.autograd.grad(x.relu(), x, torch.empty(4, 8))
    # relu, 2 x 128 bytes, and its gradient, 3 x 128 (where the allocation moves nothing).
    assert counter.total == Cost(2, 5 * 128, 0)


def test_an_operation_on_lists_writes_what_it_changes():
    changed, added_to_them = [torch.ones(8), torch.ones(8)], [torch.ones(8), torch.ones(8)]
    with CostCounter() as counter:
        torch._foreach_add_(changed, added_to_them)
    assert counter.total == Cost(1, 6 * 32, 0)


def test_a_gather_reads_what_it_takes_and_not_the_whole_set():
    images, chosen = torch.zeros(1000, 16, dtype=torch.uint8), torch.tensor([1, 2])
    with CostCounter() as counter:
        taken = images[chosen]
    assert taken.shape == (2, 16)
    assert counter.total == Cost(1, 2 * 8 + 32 + 32, 0)


def test_a_matrix_product_has_two_flops_for_each_multiplication():
    with CostCounter() as counter:
        product = torch.ones(3, 4) @ torch.ones(4, 5)
    assert product.shape == (3, 5)
    assert counter.total.flops == 2 * 3 * 4 * 5


# A forward pass is 1.11 (0.332) GFLOP an image. An attack step has two passes, forward and by the images; the update
# three, by the weights too, of twice the images: 2 x 10 + 3 x 2 = 26, less the gradient by the images of the update.
@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("name", "model", "gflop"),
    [("cifar10-resnet18-arat", "resnet18", 28.878), ("cifar10-wrn-34-10-arat", "wrn-10-4", 8.638)],
)
def test_matrix_work_an_image_is_that_of_26_forward_passes(name, model, gflop):
    # Neither the batch nor the kernels change it.
    costs = step_cost(built(name, 8, 10, TRITON, model=model))
    assert added(*costs.values()).flops / 8 / 1e9 == pytest.approx(gflop, abs=0.01)
    assert costs["convolutions"].flops == added(*costs.values()).flops


@pytest.mark.parametrize(
    ("name", "dtype", "kernels"),
    [
        ("cifar10-tiny-arat", "bf16", PYTORCH),
        ("cifar10-tiny-arat", "bf16", TRITON),
        ("cifar10-tiny-at", "fp16", PYTORCH),
        ("cifar10-tiny-at", "fp32", TRITON),
    ],
)
def test_every_part_costs_something_in_every_form(name, dtype, kernels):
    costs = cost_of(name, dtype, kernels)
    assert tuple(costs) == PARTS
    for part, cost in costs.items():
        assert cost.launches > 0 and cost.bytes > 0, part
        assert (cost.flops > 0) == (part == "convolutions"), part


@pytest.mark.no_cover
@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
def test_the_parts_together_are_the_whole_step(kernels):
    training = built("cifar10-tiny-arat", 8, 2, kernels)
    batch = next(iter(training.loader.batches(1)))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, CostCounter() as counter:
        train_step(training.parts, type(batch)(*map(fake.from_tensor, batch)), training.controls)
    parts = {part: cost for part, cost in step_cost(training).items() if part != "augmentation"}
    assert added(*parts.values()) == counter.total


@pytest.mark.no_cover
def test_the_fused_form_of_any_training_is_that_of_the_kernels():
    with_kernels, eager = (cost_of("cifar10-tiny-arat", "bf16", kernels) for kernels in (TRITON, PYTORCH))
    fused = step_cost(built("cifar10-tiny-arat", 8, 1, PYTORCH), fused=True)
    for part in ("convolutions", "batch-norm", "attack update"):
        assert fused[part] == with_kernels[part]
    for part in ("batch-norm", "attack update", "optimizer"):
        assert fused[part].bytes < eager[part].bytes
    assert fused["convolutions"] == eager["convolutions"]


@pytest.mark.no_cover
def test_loading_costs_the_same_whatever_the_size_of_the_set():
    def loading(num_batches: int) -> Cost:
        training = built("cifar10-tiny-arat", 8, 1)
        training.loader.steps_per_epoch = num_batches
        return step_cost(training)["augmentation"]

    assert loading(1) == loading(3)


@pytest.mark.parametrize("fused", [False, True])
def test_counting_changes_nothing_of_the_run(fused):
    training = built("cifar10-tiny-arat", 8, 2)
    random, state = torch.get_rng_state(), training.state_dict()
    before = {name: value.clone() for name, value in {**state["model"], **state["method"]}.items()}
    momenta = [momentum.clone() for momentum in training.parts.momenta]
    step_cost(training, fused)
    after = training.state_dict()
    assert all(torch.equal(before[name], value) for name, value in {**after["model"], **after["method"]}.items())
    assert all(map(torch.equal, momenta, training.parts.momenta))
    assert torch.equal(torch.get_rng_state(), random)
    # And a step goes on from there with the kernels that it had.
    train_step(training.parts, next(iter(training.loader.batches(1))), training.controls)
    context = forward_context(training.parts.model)
    assert context is not None and context.kernels is PYTORCH
