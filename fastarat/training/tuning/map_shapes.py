"""The shapes of the maps that a step's batch-norms normalise, each of which may be left to PyTorch."""

from collections import Counter
from typing import Any

from fastarat_kernels.implementations import MapShape
from torch import Tensor

from fastarat.common.console import notice
from fastarat.models.split_batch_norm import SplitBatchNorm2d
from fastarat.training.choices import Choices
from fastarat.training.tuning.subject import FastaratSubject, StepSetting

MOST_SHAPES = 6
"""each is a step to be compiled; a ResNet-18 has 4, a ResNet-50 has 12"""


def map_shapes(setting: StepSetting) -> list[MapShape]:
    """The shapes with the most elements in a step, those first; a notice if there are more.

    An eager step is taken, in which the layers of net and method are listened to.
    """
    subject = FastaratSubject(setting, Choices(setting.device.type))
    elements: Counter[MapShape] = Counter()

    def listen(_: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if x.ndim == 4:
            _, channels, height, width = x.shape
            elements[channels, height, width] += x.numel()

    for net in (subject.training.parts.model, subject.training.parts.method):
        for layer in net.modules():
            if isinstance(layer, SplitBatchNorm2d):
                layer.register_forward_pre_hook(listen)
    subject.step(next(subject.batches()))
    if len(elements) > MOST_SHAPES:
        most = "of the shapes of its maps those with the most elements are tried"
        notice(f"fused_batch_norm: {most}, {MOST_SHAPES} of {len(elements)}")
    return [shape for shape, _ in elements.most_common(MOST_SHAPES)]
