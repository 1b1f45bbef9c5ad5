"""The training methods and their switches."""

from dataclasses import dataclass, field, fields
from typing import Literal

from fastarat.common.typed import not_negative
from fastarat.config.model import BatchNormKind, ModelConfig

StopGradient = Literal["clean", "none", "adversarial", "symmetric"]
Metric = Literal["cosine", "mse", "kl"]


@dataclass(frozen=True)
class MethodSettings:
    """What all methods have; one of them is told from the others by its `name`."""

    label_smoothing: float = field(default=0.0, kw_only=True)
    """share of each label that is spread evenly over all classes, in the loss's cross-entropies (not the attack's)"""
    name: str = ""

    @property
    def batch_norm(self) -> BatchNormKind:
        """One set of affine parameters and running statistics; each half of a batch is normalised by its own."""
        return "shared"

    @property
    def starts_from(self) -> str | None:
        """The trained net that `Method.begin_training` takes, a run or its model.safetensors; None: it takes none."""
        return None

    @property
    def teacher_net(self) -> str | None:
        """The net, as --model.name, that the method builds as its `teacher`; None: it builds none."""
        return None

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers whose clean and adversarial features are aligned; empty: the net's own choice."""
        return ()

    @property
    def balance_augmented(self) -> bool:
        """Whether the images of `Method.num_balance_images` are cropped and flipped."""
        return False

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix. No weight is negative."""
        weights = [field.name for field in fields(self) if isinstance(field.default, float)]
        found = not_negative("method", self, *weights)
        if self.label_smoothing >= 1:
            found.append(f"method label_smoothing is {self.label_smoothing}: give a number from 0 to below 1")
        return found


@dataclass(frozen=True)
class StandardConfig(MethodSettings):
    """Standard training: cross-entropy on clean images."""

    name: Literal["standard"] = "standard"


@dataclass(frozen=True)
class ATConfig(MethodSettings):
    """AT (Madry et al., 2018): cross-entropy on adversarial images."""

    name: Literal["at"] = "at"


@dataclass(frozen=True)
class TRADESConfig(MethodSettings):
    """TRADES (Zhang et al., 2019): cross-entropy on clean images, and KL from clean to adversarial ones."""

    name: Literal["trades"] = "trades"
    beta: float = 6.0
    """weight of the KL"""


@dataclass(frozen=True)
class MARTConfig(MethodSettings):
    """MART (Wang et al., 2020): boosted cross-entropy, and KL weighted by how wrong the clean prediction is."""

    name: Literal["mart"] = "mart"
    beta: float = 5.0
    """weight of the KL"""


@dataclass(frozen=True)
class LBGATConfig(MethodSettings):
    """LBGAT (Cui et al., 2021): adversarial logits follow those of a teacher that learns clean images alongside."""

    name: Literal["lbgat"] = "lbgat"
    beta: float = 0.0
    """weight of TRADES's KL, 0 or 6 in the paper"""
    teacher: str = "resnet18"
    """the teacher's net, as --model.name"""

    @property
    def teacher_net(self) -> str:
        """See `MethodSettings.teacher_net`."""
        return self.teacher

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        return super().problems() + [f"method teacher: {problem}" for problem in ModelConfig(self.teacher).problems()]


@dataclass(frozen=True)
class ARRESTConfig(MethodSettings):
    """ARREST (Suzuki et al., 2023), unofficial: no code was released, and these numbers are not the paper's."""

    name: Literal["arrest"] = "arrest"
    teacher: str = ""
    """where training starts, and what its representations are held to: a run of a standard recipe, or its
    model.safetensors"""
    weight: float = 10.0
    """weight of the angle between the representations (0 to 1: the angle over pi)"""
    threshold: float = 0.25
    """an image whose representation lies further off (angle over pi) is replayed clean, with noise"""
    noise_255: float = 8.0
    """radius of that noise, uniform in each pixel, in 1/255 of the pixel range"""
    layer: str = ""
    """layer whose pooled output is the representation; empty: the input of the net's last layer"""

    @property
    def starts_from(self) -> str:
        """See `MethodSettings.starts_from`."""
        return self.teacher

    @property
    def noise(self) -> float:
        """Radius of the noise in pixel units, where pixels are in [0, 1]."""
        return self.noise_255 / 255


@dataclass(frozen=True)
class ARATConfig(MethodSettings):
    """AR-AT (Waseda et al., ICLR 2025): asymmetric invariance regularisation with split batch-norm."""

    name: Literal["arat"] = "arat"
    gamma: float = 30.0
    """total weight of the invariance loss, shared by the aligned layers"""
    layers: tuple[str, ...] = ()  # type: ignore[override]
    """layers whose clean and adversarial features are aligned; empty: the net's own choice"""
    stop_gradient: StopGradient = "clean"
    """which side of the invariance loss is held constant"""
    predictor: bool = True
    """a small net maps the features of the side that moves"""
    batch_norm: BatchNormKind = "split"  # type: ignore[override]
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
    balance_augmented: bool = False  # type: ignore[override]
    """measure them cropped and flipped, as the published code does"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        found = super().problems()
        if self.balance_images < 1:
            found.append(f"method balance_images is {self.balance_images}: give 1 or more")
        return found
