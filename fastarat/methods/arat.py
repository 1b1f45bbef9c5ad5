"""AR-AT: asymmetrically representation-regularised adversarial training (Waseda et al., ICLR 2025).

    loss = w CE(f_adv(x'), y) + (1 - w) CE(f_clean(x), y)
           + gamma / L * sum over layers l of D( h_l(z'_l), stopgrad(z_l) )

z is ReLU and global average pooling of a layer's output, h a predictor, D one minus the cosine, and w the
clean branch's accuracy on training images before the epoch.
"""

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastarat.common.errors import UserError
from fastarat.config.method import ARATConfig, Metric
from fastarat.methods.method import ImageShape, Method, Terms
from fastarat.models.batch_norm import BatchNorm1d
from fastarat.models.features import feature_widths, tap_layers
from fastarat.models.predictions import widened
from fastarat.models.split_batch_norm import forward_with_features


def predictor(width: int) -> nn.Sequential:
    """Linear(d, d/4, no bias), BatchNorm1d, ReLU, Linear(d/4, d): [N, d] to [N, d]."""
    hidden = max(width // 4, 1)
    return nn.Sequential(nn.Linear(width, hidden, bias=False), BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width))


def distance(metric: Metric, moving: Tensor, target: Tensor) -> Tensor:
    """Mean distance of features [N, d]: 1 - cosine, mean squared error, or KL(target ‖ moving) of softmaxes."""
    if metric == "cosine":
        return 1 - F.cosine_similarity(moving, target, dim=1).mean()
    if metric == "mse":
        return F.mse_loss(moving, target)
    return F.kl_div(moving.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)


class ARAT(Method):
    """The method with every switch of its paper. `widths`: features per aligned layer."""

    halves = ("clean", "adv")
    settings: ARATConfig
    clean_accuracy: Tensor

    def __init__(self, settings: ARATConfig, widths: Mapping[str, int]):
        super().__init__(settings)
        self.layers = tuple(widths)
        # A module's name may hold no dot, and layers are named with dots: a list beside the names.
        self.predictors = nn.ModuleList(predictor(width) for width in widths.values() if settings.predictor)
        self.register_buffer("clean_accuracy", torch.zeros(()))

    @classmethod
    def for_net(cls, settings: ARATConfig, model: nn.Module, image_shape: ImageShape) -> Self:
        """See `Method.for_net`: taps the layers whose features are aligned. Raises `UserError` if none are known."""
        layers: tuple[str, ...] = settings.layers or getattr(model, "aligned_layers", ())
        if not layers:
            raise UserError("this net has no aligned layers of its own: name some with --method.layers")
        tap_layers(model, layers)
        return cls(settings, feature_widths(model, image_shape, layers))

    metrics = (
        "loss",
        "adversarial_cross_entropy",
        "clean_cross_entropy",
        "invariance",
        "adversarial_accuracy",
        "clean_accuracy",
    )

    @property
    def num_balance_images(self) -> int:
        """How many training images the auto-balance measures."""
        return self.settings.balance_images if self.settings.auto_balance else 0

    def begin_epoch(self, clean_accuracy: Tensor) -> None:
        """Take w, the weight of the adversarial cross-entropy: the clean branch's accuracy (scalar in [0, 1])."""
        self.clean_accuracy.copy_(clean_accuracy)

    def weights(self) -> tuple[Tensor | float, Tensor | float]:
        """Weights of the adversarial and of the clean cross-entropy."""
        if self.settings.auto_balance:
            return self.clean_accuracy, 1 - self.clean_accuracy
        return self.settings.adversarial_weight, self.settings.clean_weight

    def terms(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        """See `Method.terms`."""
        logits, features = forward_with_features(model, torch.cat([x, x_adv]), "both", "train")
        clean_logits, adv_logits = widened(logits).chunk(2)
        adversarial_weight, clean_weight = self.weights()
        classification = {
            "ce_adv": adversarial_weight * self.cross_entropy(adv_logits, y),
            "ce_clean": clean_weight * self.cross_entropy(clean_logits, y),
        }
        scale = self.settings.gamma / len(self.layers)
        invariance = {}
        for i, layer in enumerate(self.layers):
            clean, adversarial = features[layer].chunk(2)
            invariance[f"invariance/{layer}"] = scale * self.invariance(i, clean, adversarial)
        metrics = {
            "adversarial_cross_entropy": F.cross_entropy(adv_logits, y),
            "clean_cross_entropy": F.cross_entropy(clean_logits, y),
            "invariance": torch.stack(list(invariance.values())).sum(),
        }
        return Terms(classification, invariance, clean_logits, adv_logits, metrics)

    def invariance(self, layer: int, clean: Tensor, adversarial: Tensor) -> Tensor:
        """The distance of one layer's features [B, d]; the predictor sits on the side that moves."""
        metric, side = self.settings.metric, self.settings.stop_gradient
        predict = self.predictors[layer] if self.settings.predictor else nn.Identity()
        if side == "none":
            return distance(metric, predict(adversarial), clean)
        if side == "clean":
            return distance(metric, predict(adversarial), clean.detach())
        if side == "adversarial":
            return distance(metric, predict(clean), adversarial.detach())
        towards_clean = distance(metric, predict(adversarial), clean.detach())
        return (towards_clean + distance(metric, predict(clean), adversarial.detach())) / 2
