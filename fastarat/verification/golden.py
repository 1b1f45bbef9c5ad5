"""A golden file of AR-AT: results of a net, whose weights are functions of their names, and the net itself.

Nothing is stored but results (see `named_tensor`), so that both sides can build the same state.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastarat.common.arrays import read_npz
from fastarat.common.errors import UserError
from fastarat.config.method import ARATConfig
from fastarat.config.model import FOREIGN
from fastarat.methods.arat import ARAT
from fastarat.models.features import feature_widths, tap_layers
from fastarat.models.published_names import published_model, published_predictors, split_layers
from fastarat.models.registry import build_model
from fastarat.verification.compare import Row

# Largest relative error of a tensor. float64: what re-ordered sums of a deep net leave of 1e-16.
# float32: 1e-7 an operation, grown through some fifty layers forward and back.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 5e-3}

SCALARS = ("arch", "salt", "gamma", "num_classes", "prev_acc")
INPUTS = (*SCALARS, "images", "labels", "noise")
WHOLE = ("salt", "num_classes", "labels")
MOST_PARAMETERS = 100_000_000


def named_tensor(name: str, shape: tuple[int, ...], salt: int) -> np.ndarray:
    """The golden state: a float64 tensor that is a function of its name, shape and the file's salt."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), salt])
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape)
    z = rng.standard_normal(shape)
    if leaf == "running_mean":
        return 0.1 * z
    if len(shape) == 4:
        return z * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    if len(shape) == 2:
        return z * np.sqrt(1 / shape[1])
    return 1 + 0.1 * z if leaf == "weight" else 0.1 * z


class Golden:
    """A golden file, and the net, predictors and inputs that it describes. All raise `UserError` for what it lacks."""

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device):
        self.path, self.vectors = path, read_npz(path)
        self.dtype, self.device = dtype, device
        self.exact = dtype == torch.float64
        missing = [key for key in INPUTS if key not in self.vectors]
        if missing:
            raise UserError(f"{path} is no golden file of AR-AT: it has no entry {missing[0]!r}")
        if problem := self._problem():
            raise UserError(f"{path} is no golden file of AR-AT: {problem}")
        self.salt, self.num_classes = int(self.vectors["salt"]), int(self.vectors["num_classes"])
        self.x = self.tensor(self.vectors["images"]).permute(0, 3, 1, 2) / 255
        self.y = torch.from_numpy(self.vectors["labels"].astype(np.int64)).to(device)
        self.noise = self.tensor(self.expected("noise", self.x.shape))
        self._check_size()
        self.reset()

    def _problem(self) -> str | None:
        """What is wrong with kinds, shapes and values of the entries, if anything is."""
        vectors = self.vectors
        for key, value in vectors.items():
            wanted = "U" if key == "arch" else "iu" if key in WHOLE else "biuf"
            if value.dtype.kind not in wanted or not value.size:
                return f"{key!r} is {value.dtype} {list(value.shape)}"
        images, labels, num_classes = vectors["images"], vectors["labels"], vectors["num_classes"]
        if images.ndim != 4 or any(vectors[key].ndim for key in SCALARS):
            return f"images must be [N, H, W, C], {SCALARS} single values"
        if not (0 <= int(vectors["salt"]) < 2**63 and 0 < int(num_classes) < 2**31):
            return f"salt is {vectors['salt']}, num_classes {num_classes}"
        if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() >= num_classes:
            return f"labels are not one of {num_classes} classes for each of {len(images)} images"
        if not (np.isfinite(vectors["gamma"]) and np.isfinite(vectors["prev_acc"])):
            return f"gamma is {vectors['gamma']}, prev_acc {vectors['prev_acc']}"
        return None

    def _check_size(self) -> None:
        """Take no memory for a net that cannot be this file's: its logits and names are compared before it is made."""
        arch = str(self.vectors["arch"])
        if FOREIGN.fullmatch(arch):
            raise UserError(f"{self.path} is no golden file of AR-AT: {arch} is another package's net")
        self.expected("eval_logits_clean", torch.Size((len(self.x), self.num_classes)))
        with torch.device("meta"):
            net = build_model(arch, self.num_classes, self.x.shape[1])
        size = sum(parameter.numel() for parameter in net.parameters())
        if size > MOST_PARAMETERS:
            raise UserError(
                f"{self.path}: {arch} has {size:,} parameters, more than the {MOST_PARAMETERS:,} of any here"
            )

    def tensor(self, value: np.ndarray) -> Tensor:
        """An array on the device, in the precision of this check."""
        return torch.from_numpy(np.asarray(value, dtype=np.float64)).to(self.device, self.dtype)

    def reset(self) -> None:
        """Build the state afresh: every tensor from its name."""
        layers = tuple(self.entries("feature_clean"))
        _, height, width, channels = self.vectors["images"].shape
        image_shape = (channels, height, width)
        settings = ARATConfig(gamma=float(self.vectors["gamma"]), layers=layers)
        self.model = build_model(str(self.vectors["arch"]), self.num_classes, channels)
        tap_layers(self.model, layers)
        try:
            widths = feature_widths(self.model, image_shape, layers)
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.path}: its net takes no images {list(image_shape)}") from error
        self.method = ARAT(settings, widths)
        for part in (self.model, self.method):
            part.to(self.device, self.dtype)
        self.method.begin_epoch(self.tensor(self.vectors["prev_acc"]))
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(self.tensor(named_tensor(name, tuple(tensor.shape), self.salt)))

    def by_name(self, model: Mapping[str, Tensor], method: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the net and the predictors under their published names, as views."""
        return {
            **published_model(model, split_layers(self.model)),
            **published_predictors(method, self.method.layers),
        }

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers under their published names, as views."""
        return self.by_name(self.model.state_dict(), self.method.state_dict())

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser updates."""
        return [*self.model.parameters(), *self.method.parameters()]

    def entries(self, prefix: str) -> dict[str, np.ndarray]:
        """The entries `prefix/NAME` by their names."""
        return {key.partition("/")[2]: value for key, value in self.vectors.items() if key.startswith(f"{prefix}/")}

    def row(self, quantity: str, pairs: list[tuple[float, float]]) -> Row:
        """A row from pairs (largest absolute error, scale)."""
        if not pairs:
            raise UserError(f"the golden file has no entries {quantity}/…: is it complete?")
        error = float(np.max([error / (scale or 1.0) for error, scale in pairs]))  # NaN stays NaN
        return Row(quantity, error, TOLERANCE[self.dtype])

    def expected(self, quantity: str, shape: torch.Size) -> np.ndarray:
        """The entry `quantity`, which must have this shape."""
        if quantity not in self.vectors:
            raise UserError(f"the golden file has no entry {quantity}: is it complete?")
        found = self.vectors[quantity]
        if found.shape != tuple(shape):
            raise UserError(
                f"the golden file's {quantity} is {found.shape}, expected {tuple(shape)}: is it of another net?"
            )
        return found

    def compare(self, quantity: str, ours: Mapping[str, Tensor], scales: Mapping[str, float] | None = None) -> Row:
        """The largest relative error over the entries `quantity/NAME` (their first elements, if `ours` has more)."""
        pairs = []
        for name, expected in self.entries(quantity).items():
            if name not in ours:
                raise UserError(f"the golden file names {name!r}, which this net does not have: is it of another net?")
            ours_head = ours[name].detach().flatten()[: expected.size].double().cpu().numpy()
            if ours_head.size != expected.size or (scales is not None and name not in scales):
                raise UserError(f"the golden file's {quantity}/{name} does not fit this net: is it of another net?")
            scale = scales[name] if scales else float(np.abs(expected).max())
            pairs.append((float(np.abs(ours_head - expected.flatten()).max()), scale))
        return self.row(quantity, pairs)
