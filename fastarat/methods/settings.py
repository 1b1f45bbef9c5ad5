"""The training methods and their switches."""

import math
from dataclasses import dataclass
from typing import Literal

from fastarat.models.settings import BatchNormKind

StopGradient = Literal["clean", "none", "adversarial", "symmetric"]
Metric = Literal["cosine", "mse", "kl"]


@dataclass(frozen=True)
class ATConfig:
    """AT (Madry et al., 2018): cross-entropy on adversarial images."""

    name: Literal["at"] = "at"

    @property
    def batch_norm(self) -> BatchNormKind:
        """One set of batch-norms: only adversarial images pass."""
        return "shared"

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        return []


@dataclass(frozen=True)
class ARATConfig:
    """AR-AT (Waseda et al., ICLR 2025): asymmetric invariance regularisation with split batch-norm."""

    name: Literal["arat"] = "arat"
    gamma: float = 30.0
    """total weight of the invariance loss, shared by the aligned layers"""
    layers: tuple[str, ...] = ()
    """layers whose clean and adversarial features are aligned; empty: the net's own choice"""
    stop_gradient: StopGradient = "clean"
    """which side of the invariance loss is held constant"""
    predictor: bool = True
    """a small net maps the features of the side that moves"""
    batch_norm: BatchNormKind = "split"
    """each half its own affine parameters and statistics; own statistics only; both halves mixed"""
    auto_balance: bool = True
    """weigh the two classification losses by the clean branch's training accuracy"""
    adversarial_weight: float = 0.5
    """weight of the adversarial cross-entropy where auto-balance is off"""
    clean_weight: float = 0.5
    """weight of the clean cross-entropy where auto-balance is off"""
    metric: Metric = "cosine"
    """distance between the features"""
    balance_images: int = 10_000
    """training images that the auto-balance measures before each epoch"""
    balance_augmented: bool = False
    """measure them cropped and flipped, as the published code does"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        found = []
        for field in ("gamma", "adversarial_weight", "clean_weight"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                found.append(f"method {field} is {value}: give a finite number of 0 or more")
        if self.balance_images < 1:
            found.append(f"method balance_images is {self.balance_images}: give 1 or more")
        return found


MethodConfig = ATConfig | ARATConfig
