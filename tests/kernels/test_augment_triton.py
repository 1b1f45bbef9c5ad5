"""Gather, crop, flip and scale: the Triton kernel and the operator against the PyTorch twin."""

import importlib.util

import pytest
import torch
from fastarat_kernels.augment import augment, twin
from fastarat_kernels.augment import triton as kernels
from fastarat_kernels.augment.gather import gather
from fastarat_kernels.augment.op import _augment
from fastarat_kernels.launch import UnsupportedInput, recording
from torch import Tensor

from tests.helpers.poison import poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS = [(4, True), (1, False), (0, True), (0, False)]
BATCHES = [
    *(((5, 7, 3), num_extra) for num_extra in (None, 0, 1, 5)),
    *((shape, num_extra) for shape in ((8, 8, 1), (1, 1, 3), (3, 2, 4)) for num_extra in (None, 5)),
]
INDEX, EPOCH, SEED = [5, 0, 8, 8, 3], 2**31 + 7, 2**63 + 12345


def pixels(height: int = 5, width: int = 7, channels: int = 3, device: str = DEVICE) -> Tensor:
    return torch.randint(0, 256, (9, height, width, channels), dtype=torch.uint8, device=device)


def both(
    images: Tensor,
    crop_padding: int = 4,
    flip: bool = True,
    max_value: int = 255,
    dtype: torch.dtype = torch.float32,
    num_channels: int | None = None,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The kernel's batch and the twin's."""
    index = torch.tensor(INDEX, device=images.device) if index is None else index
    settings = {"crop_padding": crop_padding, "flip": flip, "seed": SEED, "epoch": EPOCH, "num_channels": num_channels}
    with poisoned():
        ours = kernels.augment(images, index, max_value=max_value, dtype=dtype, **settings)
    return ours, twin.augment(images, index, max_value=max_value, dtype=dtype, **settings)


# Each with crop and flip, and with one of the other settings in turn.
@pytest.mark.parametrize(
    ("shape", "num_extra", "crop_padding", "flip"),
    [(*given, *SETTINGS[turn]) for i, given in enumerate(BATCHES) for turn in (0, 1 + i % 3)],
)
def test_the_kernel_gives_the_twin_s_batch(shape, crop_padding, flip, num_extra):
    num_channels = None if num_extra is None else shape[2] + num_extra
    ours, expected = both(pixels(*shape), crop_padding, flip, num_channels=num_channels)
    assert torch.equal(ours, expected)
    assert ours.stride() == expected.stride()
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.no_cover  # the interpreter's lines, counted above
def test_the_kernel_gives_the_twin_s_batch_for_images_of_several_blocks():
    ours, expected = both(pixels(32, 32), num_channels=4)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("max_value", [1, 16, 255])
def test_a_value_is_divided_exactly(max_value):
    images = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(1, 16, 16, 1)
    ours, expected = both(images, 0, False, max_value, index=torch.tensor([0], device=DEVICE))
    assert torch.equal(ours, expected)
    assert torch.equal(ours.flatten(), torch.arange(256, device=DEVICE) / torch.tensor(float(max_value)).to(DEVICE))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-7), (torch.float16, 0)])
def test_half_precision_is_rounded_once(dtype, bound):
    ours, expected = both(pixels(), dtype=dtype)
    assert ours.dtype == expected.dtype == dtype
    # One unit in the last place of bf16: the interpreter truncates.
    assert ((ours.float() - expected.float()).abs() <= bound * expected.float()).all()


def test_extra_channels_are_zero_and_the_others_as_without():
    wide, narrow = both(pixels(), num_channels=8)[0], both(pixels())[0]
    assert wide.shape == (5, 8, 5, 7)
    assert not wide[:, 3:].any()
    torch.manual_seed(0)
    images = pixels()
    wide, narrow = both(images, num_channels=8)[0], both(images)[0]
    assert torch.equal(wide[:, :3], narrow)


def test_without_crop_and_flip_it_is_a_gather():
    images, index = pixels(), torch.tensor(INDEX, device=DEVICE)
    ours = kernels.augment(images, index, EPOCH, 255, torch.float32, 0, False, SEED, 4)
    assert torch.equal(ours, gather(images, index, 255, torch.float32, 4))


def test_a_slice_of_an_order_may_be_the_index():
    index = torch.arange(9, device=DEVICE).repeat_interleave(2)[::2][2:5]
    ours, expected = both(pixels(), index=index)
    assert torch.equal(ours, expected)


def test_a_batch_of_no_images_is_empty_and_starts_nothing():
    """The share of a process in a last batch of fewer images than processes."""
    with recording() as launches:
        ours, expected = both(pixels(), num_channels=4, index=torch.empty(0, dtype=torch.int64, device=DEVICE))
    assert launches == [] and ours.shape == expected.shape == (0, 4, 5, 7) and ours.dtype == expected.dtype


def test_one_launch_does_it_all():
    with recording() as launches:
        kernels.augment(pixels(device="meta"), torch.tensor(INDEX, device="meta"), 1, 255, torch.float32, 4, True, SEED)
    assert len(launches) == 1


def test_no_epoch_and_no_seed_needs_a_kernel_of_its_own(monkeypatch):
    # Triton makes other kernels for a 1 and for multiples of 16, but where told not to; its interpreter cannot tell.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    spec = importlib.util.find_spec(kernels.__name__)
    assert spec is not None and spec.loader is not None
    for_a_gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(for_a_gpu)
    assert [p.name for p in for_a_gpu._augment_kernel.params if p.do_not_specialize] == ["epoch", "seed"]


@pytest.mark.parametrize(
    ("dtype", "channels", "num_channels"),
    [(torch.float32, 3, None), (torch.float32, 1, 4), (torch.bfloat16, 3, 4), (torch.float64, 1, None)],
)
def test_the_operator_is_well_formed_and_gives_the_twin(dtype, channels, num_channels):
    given = (pixels(channels=channels, device="cpu"), torch.tensor(INDEX))
    torch.library.opcheck(_augment, (*given, 3, 255, dtype, 4, True, -5, num_channels))
    ours = augment(*given, EPOCH, 255, dtype, 4, True, SEED, num_channels)
    assert torch.equal(ours, twin.augment(*given, EPOCH, 255, dtype, 4, True, SEED, num_channels))


def test_the_operator_traces_in_one_graph_and_an_epoch_costs_one_trace_more():
    traces = 0

    def count(graph, inputs):
        nonlocal traces
        traces += 1
        return graph

    def batch(images, index, epoch):
        return augment(images, index, epoch, 255, torch.float32, 4, True, SEED)

    images, index = pixels(device="cpu"), torch.tensor(INDEX)
    traced = torch.compile(batch, fullgraph=True, backend="aot_eager")
    counted = torch.compile(batch, fullgraph=True, backend=count)
    for epoch in (2, 3, 4, 16, 40):
        expected = twin.augment(images, index, epoch, 255, torch.float32, 4, True, SEED)
        assert torch.equal(traced(images, index, epoch), expected)
        assert torch.equal(counted(images, index, epoch), expected)
    assert traces == 2


def test_bad_input_is_refused_with_what_to_give():
    images, index = pixels(device="cpu"), torch.tensor(INDEX)

    def call(function=augment, images=images, index=index, dtype=torch.float32, padding=4, num_channels=None):
        return function(images, index, 1, 255, dtype, padding, True, 0, num_channels)

    for wrong, words in [
        ({"images": images.float()}, "uint8"),
        ({"images": images[0]}, r"\[N, H, W, C\]"),
        ({"index": index.int()}, "int64"),
        ({"dtype": torch.int32}, "float dtype"),
        ({"padding": -1}, "0 or more"),
        ({"num_channels": 2}, "at least as many"),
        ({"function": kernels.augment, "dtype": torch.float64}, "kernels=pytorch"),
        ({"function": kernels.augment, "images": images.expand(9, 5, 7, 3)[:, :, 1:]}, r"images.contiguous\(\)"),
        ({"function": kernels.augment, "images": images[:0]}, "not empty"),
    ]:
        with pytest.raises(UnsupportedInput, match=words) as raised:
            call(**wrong)
        assert "\n" not in str(raised.value)
