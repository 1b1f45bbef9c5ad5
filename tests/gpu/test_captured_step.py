"""The step on a GPU: compiled and captured it tracks the eager one, and nothing in it waits for the device."""

import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON
from step_parts import controls_of, parts_of

from fastarat.attacks.settings import AttackConfig
from fastarat.data.loader import Batch
from fastarat.engine.compiled import build_step
from fastarat.methods.registry import build_method
from fastarat.methods.settings import ARATConfig
from fastarat.models.registry import build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ATTACK = AttackConfig(steps=2)


def built(mode, kernels, precision="fp32", unroll=True):
    """A step of AR-AT on a small net, with its parts and controls."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    net = build_model("tiny", 10).to(device, memory_format=torch.channels_last).train()
    method = build_method(ARATConfig(gamma=1.0), net, (3, 32, 32)).to(device).train()
    parts = parts_of(net, method, ATTACK, precision, device=device, kernels=kernels)
    controls = controls_of(parts)
    return build_step(parts, controls, mode, unroll), parts, controls


def batch(i: int) -> Batch:
    generator = torch.Generator().manual_seed(i)
    x = torch.rand(32, 3, 32, 32, generator=generator).cuda().contiguous(memory_format=torch.channels_last)
    return Batch(x, torch.randint(0, 10, (32,), generator=generator).cuda(), torch.arange(32).cuda())


def run(mode, kernels, num_steps, **options):
    """Losses over steps whose rate, balance, step number and images all change."""
    step, parts, controls = built(mode, kernels, **options)
    losses = []
    for i in range(num_steps):
        controls.step.fill_(i)
        controls.learning_rate.fill_(0.01 * (1 + i % 5))
        parts.method.begin_epoch(torch.tensor(0.2 + 0.003 * (i % 100)))
        losses.append(step(batch(i % 16))["loss"].clone())
    return torch.stack(losses).cpu()


@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("unroll", [True, False], ids=["one graph", "three graphs"])
def test_the_captured_step_tracks_the_eager_one_over_200_replays(kernels, unroll, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    eager = run("eager", kernels, 200)
    captured = run("graph", kernels, 200, unroll=unroll)
    # float32; two attack steps turn a rounding into another pixel now and then, and training magnifies it: the
    # first steps agree closely, all of them on average.
    torch.testing.assert_close(captured[:3], eager[:3], rtol=1e-3, atol=0)
    assert (captured - eager).square().mean().sqrt() < 0.05 * eager.square().mean().sqrt()
    assert captured.isfinite().all()


@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_captured_step_trains_in_half_precision(kernels, precision):
    losses = run("graph", kernels, 60, precision=precision)
    assert losses.isfinite().all() and losses[-16:].mean() < losses[:16].mean()


def test_a_capture_leaves_everything_as_it_was_before_its_first_replay():
    step, parts, controls = built("graph", TRITON)
    before = [p.detach().clone() for p in (*parts.parameters, *parts.model.buffers())]
    controls.learning_rate.fill_(0.0)
    step(batch(0))
    parameters = len(parts.parameters)
    assert all(torch.equal(p, was) for p, was in zip(parts.parameters, before[:parameters], strict=True))
    # One step moved the adversarial running statistics, by three forwards of one batch.
    moved = [b for b, was in zip(parts.model.buffers(), before[parameters:], strict=True) if not torch.equal(b, was)]
    assert moved


def test_a_replayed_step_never_waits_for_the_device():
    step, _, controls = built("graph", TRITON)
    batches = [batch(i) for i in range(4)]
    step(batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i, given in enumerate(batches):
            controls.step.fill_(i)
            controls.learning_rate.fill_(0.1)
            step(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
