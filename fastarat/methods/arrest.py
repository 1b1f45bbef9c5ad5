"""ARREST (Suzuki et al., ICCV 2023, "Adversarial Finetuning with Latent Representation Constraint to Mitigate
Accuracy-Robustness Tradeoff"). Unofficial: no code was released, and what the paper leaves open is chosen here.

    loss = CE(f(v), y) + weight * mean over images of angle( z(v), z_t(x) )

f starts as the teacher t, a net trained on clean images that stays as it was. z are a net's pooled features before its
last layer, angle is arccos of their cosine over pi. v is x'; but where z(x') lies further than `threshold` from
z_t(x), it is a noisy clean image (noisy replay), on which f finds back to the representation that it had.
"""

import copy
import math
from typing import Self

import torch
import torch.nn.functional as F
from fastarat_kernels import philox
from torch import Tensor, nn

from fastarat.common.errors import UserError
from fastarat.config.method import ARRESTConfig
from fastarat.methods.method import ImageShape, Method, Terms
from fastarat.models.batch_norm import Statistics
from fastarat.models.convert import convert_to_split_batch_norm
from fastarat.models.features import tap_layers
from fastarat.models.predictions import widened
from fastarat.models.split_batch_norm import forward_with_features


def angle(one: Tensor, other: Tensor) -> Tensor:
    """arccos of the cosine of features [B, d] over pi: [B], from 0 (same direction) to 1 (opposite).

    The cosine is kept 1e-6 off its ends, where the gradient of arccos has no bound.
    """
    cosine = F.cosine_similarity(one, other, dim=1)
    return cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos() / math.pi


class ARREST(Method):
    """`model`: the net, tapped at `layer`, whose pooled output is the representation; the teacher is its copy."""

    metrics = ("loss", "adversarial_cross_entropy", "angle", "replayed", "adversarial_accuracy")
    settings: ARRESTConfig
    num_steps: Tensor
    first_row: Tensor

    def __init__(self, settings: ARRESTConfig, model: nn.Module, layer: str):
        super().__init__(settings)
        self.layer, self.seed = layer, 0
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        # A tensor, so that the step of every process is the same graph.
        self.register_buffer("first_row", torch.zeros((), dtype=torch.int64), persistent=False)

    @classmethod
    def for_net(cls, settings: ARRESTConfig, model: nn.Module, image_shape: ImageShape) -> Self:
        """See `Method.for_net`: taps the layer before the last. Raises `UserError` if it is not known."""
        layer = settings.layer or getattr(model, "pooled_layer", "")
        if not layer:
            raise UserError("this net does not name the layer before its last: name it with --method.layer")
        tap_layers(model, (layer,))
        return cls(settings, model, layer)

    def draw_by(self, seed: int, first_row: int) -> None:
        """See `Method.draw_by`: the replayed images' noise."""
        self.seed = seed
        self.first_row.fill_(first_row)

    def begin_training(self, model: nn.Module, teacher: nn.Module) -> None:
        """See `Method.begin_training`: the net and the teacher are that net."""
        state = convert_to_split_batch_norm(teacher, "shared").state_dict()
        model.load_state_dict(state)
        self.teacher.load_state_dict(state)

    def terms(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        """See `Method.terms`; which images are replayed is found by one forward more."""
        with torch.no_grad():
            _, target = self._logits_and_features(self.teacher, x, "eval")
            # Batch statistics as in the forward that trains, which alone moves the running ones.
            _, now = self._logits_and_features(model, x_adv, "frozen")
            replayed = angle(now, target) > self.settings.threshold
            inputs = torch.where(replayed[:, None, None, None], self._noisy(x), x_adv)
        logits, features = self._logits_and_features(model, inputs, "train")
        cross_entropy, distance = self.cross_entropy(logits, y), angle(features, target).mean()
        metrics = {"adversarial_cross_entropy": cross_entropy, "angle": distance, "replayed": replayed.float().mean()}
        return Terms({"ce_adv": cross_entropy}, {"angle": self.settings.weight * distance}, None, logits, metrics)

    def _logits_and_features(self, net: nn.Module, x: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
        logits, features = forward_with_features(net, x, "adv", statistics)
        return widened(logits), widened(features[self.layer])

    def _noisy(self, x: Tensor) -> Tensor:
        """`x` plus uniform noise, cut to [0, 1]; a function of the seed, the step and an image's place in the batch."""
        rows = self.first_row + torch.arange(len(x), device=x.device)
        u = philox.uniform(self.seed, philox.Stream.REPLAY, self.num_steps, rows, tuple(x.shape[1:]))
        self.num_steps.add_(1)
        return (x + self.settings.noise * (2 * u - 1).to(x.dtype)).clamp(0, 1)
