"""Between log lines the host asks the device for nothing: it only launches, and is always ahead."""

from dataclasses import replace

import pytest
import torch

from fastarat.config import recipes
from fastarat.config.data import AugmentConfig
from fastarat.config.recipes import recipe
from fastarat.config.training import AveragingConfig
from tests.helpers.host_syncs import HostSync, NoHostSync, QuietLoop
from tests.helpers.step_parts import nets_of_one_block


@pytest.fixture(autouse=True)
def one_block():
    with nets_of_one_block():
        yield


def small(name: str, averaging: str = "none"):
    """Three steps an epoch, of everything that a step may hold."""
    config = recipe(name)
    return replace(
        config,
        batch=8,
        num_train_images=24,
        augment=AugmentConfig(1, True),
        attack=replace(config.attack, steps=min(config.attack.steps, 2)),
        averaging=AveragingConfig(averaging, start_epoch=1, every_steps=2),
    )


@pytest.mark.parametrize(
    ("name", "dtype", "averaging"),
    [
        *(("digits-arat", "fp32", averaging) for averaging in ("none", "ema", "swa")),
        *(("digits-at", dtype, "none") for dtype in ("fp32", "bf16", "fp16")),
        ("digits-arat", "bf16", "ema"),
    ],
)
def test_epochs_train_without_a_wait_for_the_device(name, dtype, averaging):
    loop = QuietLoop(small(name, averaging), dtype=dtype)
    with NoHostSync():
        totals = loop.epochs(2)
    training = loop.training
    assert training.step == 6 and training.epoch == 3
    assert totals.isfinite().all() and totals[0] > 0
    assert training.average is None or training.average.num_snapshots == {"ema": 6, "swa": 3}[averaging]


@pytest.mark.parametrize("name", sorted({n for n in recipes.names() if "digits-" in n} - {"digits-arat", "digits-at"}))
def test_no_other_method_waits(name):
    loop = QuietLoop(small(name))
    with NoHostSync():
        totals = loop.epochs(1)
    assert loop.training.step == 3 and totals.isfinite().all()


CHANGES = [
    {"norm": "l2", "eps_255": 128},
    {"start": "published-code"},
    {"objective": "kl"},
    {"start": "gaussian"},
    {"start_scale": 2, "project": False},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_kind_of_attack_does_without_a_wait(change):
    config = small("digits-arat")
    loop = QuietLoop(replace(config, attack=replace(config.attack, **change)))
    with NoHostSync():
        loop.epochs(1)
    assert loop.training.step == 3


def test_a_step_that_looks_at_its_loss_is_found():
    loop = QuietLoop(small("digits-at"))
    step, seen = loop.step, []

    def curious(batch):
        metrics = step(batch)
        seen.append(metrics["loss"].item())
        return metrics

    loop.step = curious
    with pytest.raises(HostSync), NoHostSync():
        loop.epochs(1)
    assert not seen and loop.epochs(1).isfinite().all()


MASK, VALUES = torch.tensor([True, False, True]), torch.tensor([1.0, 2.0, 3.0])
WAITS = {
    "item": lambda: VALUES[0].item(),
    "float": lambda: float(VALUES[0]),
    "if": lambda: 1 if VALUES.sum() > 1 else 0,
    "tolist": lambda: VALUES.tolist(),
    "cpu": lambda: VALUES.cpu(),
    "to": lambda: VALUES.to("cpu"),
    "to by name": lambda: VALUES.to(device=torch.device("cpu")),
    "numpy": lambda: VALUES.numpy(),
    "nonzero": lambda: MASK.nonzero(),
    "mask": lambda: VALUES[MASK],
    "writing by a mask": lambda: VALUES.clone().__setitem__(MASK, 0.0),
    "masked_select": lambda: VALUES.masked_select(MASK),
    "unique": lambda: VALUES.unique(),
    "equal": lambda: torch.equal(VALUES, VALUES),
    "bincount": lambda: MASK.long().bincount(minlength=2),
    "repeat_interleave": lambda: VALUES.repeat_interleave(MASK.long()),
    "tensor": lambda: torch.tensor(3.0),
    "as_tensor": lambda: torch.as_tensor(3),
    "list": lambda: VALUES[[0, 1]],
}


@pytest.mark.parametrize("wait", WAITS)
def test_all_that_would_wait_is_found(wait):
    WAITS[wait]()
    with pytest.raises(HostSync), NoHostSync():
        WAITS[wait]()


def test_what_the_device_can_do_alone_is_allowed():
    with NoHostSync():
        index = torch.arange(2)
        kept = torch.where(MASK, VALUES, 0.0)[index].to(torch.float64).sum()
        VALUES.clone().masked_fill_(MASK, 0).index_add_(0, index, torch.full((2,), 1.0)).fill_(kept)
