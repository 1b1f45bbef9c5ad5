"""Which net, and how its batch-norms see the clean and the adversarial half of a batch."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from fastarat.common.errors import did_you_mean

BatchNormKind = Literal["split", "shared", "mixed"]
Branch = Literal["clean", "adv"]

WIDE_RESNET = re.compile(r"wrn-(\d+)-(\d+)")
FOREIGN = re.compile(r"(torchvision|timm)/([\w.-]+)")
"""another package's net, which is looked up once torch is there"""

_RESNET, _FOUR_STAGES = "fastarat.models.resnet:ResNet", {"widths": (64, 128, 256, 512), "strides": (1, 2, 2, 2)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": (_RESNET, {"widths": (32, 64), "strides": (1, 2), "num_blocks": (1, 1)}),
    "tiny": (_RESNET, {"widths": (16, 32, 64), "strides": (2, 2, 2), "num_blocks": (1, 1, 1)}),
    "resnet18": (_RESNET, {**_FOUR_STAGES, "num_blocks": (2, 2, 2, 2)}),
    "resnet18-w32": (_RESNET, {**_FOUR_STAGES, "widths": (32, 64, 128, 256), "num_blocks": (2, 2, 2, 2)}),
    "resnet18-imagenet": (_RESNET, {**_FOUR_STAGES, "num_blocks": (2, 2, 2, 2), "large_images": True}),
    "resnet50": (_RESNET, {**_FOUR_STAGES, "num_blocks": (3, 4, 6, 3), "bottleneck": True, "large_images": True}),
}
"""nets by name, a line each: MODULE:CLASS, imported once it is built, and its arguments but for classes and channels"""


@dataclass(frozen=True)
class ModelConfig:
    """The net."""

    name: str = "resnet18"
    """small images: digits, tiny, resnet18, resnet18-w32 (half as wide), wrn-DEPTH-WIDTH (depth 6n + 4); from 64
    pixels: resnet18-imagenet, resnet50; or a classifier of an installed package: torchvision/NAME, timm/NAME"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        if match := WIDE_RESNET.fullmatch(self.name):
            depth, width = map(int, match.groups())
            if 10 <= depth <= 1000 and depth % 6 == 4 and 1 <= width <= 100:
                return []
            return [
                f"{self.name}: give a depth of 6n + 4 (10, 16, 22, 28, 34), at most 1000, and a width from 1 to 100"
            ]
        if self.name in MODELS or FOREIGN.fullmatch(self.name):
            return []
        hint = did_you_mean(self.name, [*MODELS, "wrn-34-10"])
        available = f"{', '.join(MODELS)}, wrn-DEPTH-WIDTH, torchvision/NAME, timm/NAME"
        return [f"unknown model {self.name!r}: give {available}{hint}"]
