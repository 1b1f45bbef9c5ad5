"""AutoAttack's warnings: plain sentences on why its numbers may say too much. They change nothing."""

import torch
from torch import Tensor

from fastarat.attacks.autoattack_state import Record, Task, nothing
from fastarat.attacks.pgd import Logits

# From here on the standard speaks up: unit-normalised logits of two passes apart; points of percentage by Square.
RANDOM_ABOVE = 1e-4
SQUARE_ABOVE = 0.2
NO_GRADIENT = {
    # Not of the standard, which looks at APGD-T alone.
    "apgd-ce": "the cross-entropy is flat where logits are very large, and this attack is blind there. "
    "apgd-t, whose loss does not feel the scale of logits, makes up for it, unless it is warned of too.",
    "apgd-t": "the model hides its gradient, and robust accuracy against attacks that follow it is too high.",
}


@torch.no_grad()
def randomness(logits_of: Logits, task: Task, clean_logits: Tensor) -> str:
    """How the model differs from itself in five passes over the first batch, the one that was made included; or ''."""
    x, y = task.pixels(slice(task.batch)), task.labels[: task.batch]
    passes = torch.stack([clean_logits[: task.batch], *(logits_of(x) for _ in range(4))])
    units = passes / (passes.norm(dim=2, keepdim=True) + 1e-10)
    apart = max(float((a - b).norm(dim=1).max()) for a in units for b in units)
    right = [int((logits.argmax(1) == y).sum()) for logits in passes]
    if apart <= RANDOM_ABOVE and len(set(right)) == 1:
        return ""
    return (
        f"The model is randomised: in 5 passes over the first {len(y)} images {min(right)} to {max(right)} were right, "
        f"and normalised logits differed by up to {apart:.1e}. The standard AutoAttack does not average over a model's "
        "randomness, so robust accuracy may be too high."
    )


def probabilities(task: Task, clean_logits: Tensor) -> str:
    """A warning if the first batch's logits look like probabilities; or ''."""
    first = clean_logits[: task.batch]
    sums_to_1 = (first.sum(1) - 1).abs().max() < 1e-5
    if not (first.max() < 1 + 1e-5 and first.min() > -1e-5 and sums_to_1):
        return ""
    return (
        "The model seems to return probabilities, where AutoAttack wants logits: gradients through a softmax vanish, "
        "so robust accuracy may be too high. Evaluate the model without its softmax."
    )


def afterthoughts(
    task: Task, robust: list[Tensor], of: dict[str, list[Record]], unconfirmed: dict[str, list[int]]
) -> list[str]:
    """What the attacks themselves give reason to say."""
    warnings = []
    for name, meaning in NO_GRADIENT.items():
        zero, searches = (
            torch.stack([record.zero_gradients for record in of.get(name, [nothing(task)])]).sum(0).tolist()
        )
        if zero:
            warnings.append(f"{zero} of {searches} searches of {name} began with a gradient of exactly zero: {meaning}")
    at = list(of).index("square") if "square" in of else 0
    gained = 100 * float((robust[at] & ~robust[at + 1]).sum()) / len(task.labels) if at else 0
    if gained > SQUARE_ABOVE:
        warnings.append(
            f"Square, which needs no gradient, lowered robust accuracy by {gained:.1f} points after the attacks with "
            "gradients: the model probably hides its gradient, and true robust accuracy may be lower."
        )
    for name, rows in unconfirmed.items():
        if rows:
            warnings.append(
                f"{len(rows)} images that {name} found were not confirmed: run again in float32, they are classified "
                "correctly, or they lie outside the ball or [0, 1]. They count as robust to it."
            )
    return warnings
