"""Which net, and how its batch-norms see the clean and the adversarial half of a batch."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

BatchNormKind = Literal["split", "shared", "mixed"]
Branch = Literal["clean", "adv"]

NAMES = ("digits", "tiny", "resnet18", "resnet18-imagenet", "resnet50", "wrn-34-10")
WIDE_RESNET = re.compile(r"wrn-(\d+)-(\d+)")
FOREIGN = re.compile(r"(torchvision|timm)/([\w.-]+)")
"""another package's net, which is looked up once torch is there"""


@dataclass(frozen=True)
class ModelConfig:
    """The net."""

    name: str = "resnet18"
    """small images: digits, tiny, resnet18, wrn-DEPTH-WIDTH (depth 6n + 4); from 64 pixels: resnet18-imagenet,
    resnet50; or a classifier of an installed package: torchvision/NAME, timm/NAME"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        match = WIDE_RESNET.fullmatch(self.name)
        if match:
            depth, width = map(int, match.groups())
            fits = 10 <= depth <= 1000 and depth % 6 == 4 and 1 <= width <= 100
            return (
                []
                if fits
                else [f"{self.name}: the depth must be 6n + 4 (10, 16, 22, 28, 34), at most 1000, the width 1 to 100"]
            )
        if self.name in NAMES or FOREIGN.fullmatch(self.name):
            return []
        near = get_close_matches(self.name, NAMES, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        available = f"{', '.join(NAMES)}, wrn-DEPTH-WIDTH, torchvision/NAME, timm/NAME"
        return [f"Unknown model {self.name!r}. Available: {available}.{hint}"]
